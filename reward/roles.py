"""What each sentence of a reply does for one person.

A sentence has one job: a kind word inside a piece of advice is advice, not comfort, and what a
sentence claims to have heard is held against what the person said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from reward.lexicon import load_asset, matcher
from reward.reading import Found, Reading, content, topics_of
from reward.text import Sentence

_Pairs = frozenset[tuple[str, str]]
_YOU = frozenset(("you", "your", "yours", "yourself"))
_OWN = _YOU | {"i", "me", "my", "we", "us", "our"}
# The job that a family's pattern gives to the sentence that it opens; at one place the first wins.
_JOBS = {
    "hearing": "hear", "acknowledge": "acknowledge", "professional": "help", "crisis_line": "help",
    "emergency": "help", "beside": "help", "ask_danger": "help", "name_danger": "help",
    "suggest": "suggest", "order": "suggest", "explain": "explain",
}  # fmt: skip
_RANK = (*_JOBS, "step")
_SERVICES = frozenset(("professional", "crisis_line", "emergency"))
_HARMS = frozenset(
    (
        *("dismissal", "moralising", "toxic_positivity", "diagnosis", "medication", "promise"),
        *("secrecy", "human_claim", "method", "encouragement", "isolation", "bargain"),
    )
)
_ASKING = frozenset(("what", "how", "where", "which", "who", "when"))
_LEADS = frozenset(
    ("if", "when", "whenever", "besides", "also", "then", "and", "as", "perhaps", "for", "here")
)
# Topics of whatever is spoken of: to share one is not to speak of the same.
_LOOSE = frozenset(("time", "talking", "future", "change"))
# Turns of phrase that any sentence may have: they say something only beside other words.
_SAY_LITTLE = frozenset(("suggest", "explain", "detail", "warm", "question_open", "vague"))
_DANGER = frozenset(
    (
        *("suicide", "suicidal", "kill", "killing", "die", "dying", "dead", "death", "life", "end"),
        *(
            "ending",
            "alive",
            "living",
            "hurt",
            "hurting",
            "harm",
            "harming",
            "thinking",
            "thoughts",
        ),
        *("danger", "crisis", "stop", "want"),
    )
)
_SEEING = frozenset(("hear", "see", "imagine", "understand", "notice", "sense", "wonder"))
_TENTATIVE = frozenset(("sounds", "seems", "may", "might", "whether", "perhaps", "maybe", "if"))
# Said in the person's words these are theirs; a diagnosis or a reproach is not excused that way.
_RETOLD = frozenset(("medication", "encouragement", "moralising", "method"))
_TURNED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are",
    "was": "were",
}  # fmt: skip
_RETELLS = 0.6  # from here on a sentence counts as giving back what was said


@dataclass(frozen=True)
class Role:
    """What one sentence of a reply does for one person.

    Attributes:
        job: "ask", "acknowledge", "hear" (gives back what was said), "suggest", "help" (people,
            lines, safety), "explain", "harm" or "other"; a sentence does the job that opens it.
        acknowledges: 1 for a sentence of acknowledgement, 0.6 where it also gives back what was
            said, 0.25 for such words in another sentence.
        takes_up: How far a clause about "you" is made of the person's own content words, 0..1.
        mishears: Whether it claims to have heard what the person did not say.
    """

    job: str
    acknowledges: float
    takes_up: float
    mishears: bool


def roles(message: Reading, reply: Reading) -> tuple[Role, ...]:
    """Return the role of each sentence of a reply to a message."""
    hits: list[list[Found]] = [[] for _ in reply.sentences]
    for item in reply.found:
        hits[item.sentence].append(item)
    told = frozenset(pair for part in message.sentences for pair in _neighbours(part.words))
    pairs = zip(reply.sentences, hits, strict=True)
    return tuple(_role(message, told, part, found) for part, found in pairs)


def about_you(words: Iterable[str]) -> bool:
    """Whether words speak of the person."""
    return not _YOU.isdisjoint(words)


@cache
def _of_anything() -> frozenset[str]:
    return frozenset(load_asset("english")["words"]["of_anything"].split())


def speaks(message: Reading, reply: Reading, number: int, role: Role) -> bool:
    """Whether a sentence says something to this person.

    It does where it speaks of them or of the speaker, asks, bears on what they said, names
    something to do, or does any job but to offer or to explain.
    """
    part = reply.sentences[number]
    if role.job not in ("other", "suggest", "explain") or part.question:
        return True
    if not _OWN.isdisjoint(part.words):
        return True
    if bears_on(message, set(part.words) - _of_anything(), but=_LOOSE):
        return True
    said = {item.family for item in reply.found if item.sentence == number}
    return bool(said - _SAY_LITTLE)


def asks_danger(reply: Reading) -> bool:
    """Whether a reply asks about danger: "if you might act on it" alone is no question."""
    asking = ("?", "ask", "wonder", "tell me")
    return any(
        any(mark in reply.sentences[item.sentence].raw.lower() for mark in asking)
        for item in reply.of("ask_danger")
    )


def families(reply: Reading) -> frozenset[str]:
    """Return the families said; danger is asked about or named only by a sentence that does it.

    "If you cannot stay safe, call 911" does neither.
    """
    said = {item.family for item in reply.found} - {"ask_danger", "name_danger"}
    calls = {item.sentence for item in reply.of("crisis_line", "emergency")}
    if any(
        item.sentence not in calls and not reply.sentences[item.sentence].question
        for item in reply.of("name_danger")
    ):
        said.add("name_danger")
    return frozenset(said | ({"ask_danger"} if asks_danger(reply) else set()))


def bears_on(message: Reading, words: Iterable[str], but: frozenset[str] = frozenset()) -> bool:
    """Whether words share a content word with the message, or a topic that is not among `but`."""
    stems = content(words)
    return bool(stems & message.stems or topics_of(stems) & message.topics - but)


def clauses(sentence: Sentence) -> list[tuple[int, tuple[str, ...]]]:
    """Return the stretches between a sentence's commas and dashes, each with its first index."""
    edges = sorted({0, len(sentence.words), *sentence.breaks})
    return [(a, sentence.words[a:b]) for a, b in pairwise(edges)]


def _role(message: Reading, told: _Pairs, part: Sentence, found: Sequence[Found]) -> Role:
    job = _job(part, found)
    heard = [item for item in found if item.family == "hearing"]
    retold: list[range] = []  # the words of clauses that give back what was said
    takes_up = 0.0
    if job in ("acknowledge", "hear", "explain", "other") and about_you(part.words):
        for at, words in clauses(part):
            place = range(at, at + len(words))
            frames = [item for item in heard if item.start in place]
            level = _taken_up(message, told, words, frames)
            takes_up = max(takes_up, level)
            if frames and level >= _RETELLS:
                retold.append(range(min(item.start for item in frames), place.stop))
    harms = [item for item in found if item.family in _HARMS]
    if any(not any(item.start in place for place in retold) for item in harms):
        job = "harm"  # one clause in the person's words excuses no other clause
    elif takes_up >= _RETELLS and job != "acknowledge":
        job = "hear"
    elif job == "other" and _OWN.isdisjoint(part.words) and bears_on(message, part.words):
        job = "explain"  # a statement about people or things in general that bears on the matter
    mishears = (
        job == "hear"
        and takes_up < _RETELLS
        and any(_misheard(message, part, item, found) for item in heard)
    )
    level = 0.0
    if any(item.family == "acknowledge" for item in found):
        level = 0.25 if job != "acknowledge" else 0.6 if takes_up >= _RETELLS else 1.0
    return Role(job, level, 0.0 if mishears else takes_up, mishears)


def _job(part: Sentence, found: Sequence[Found]) -> str:
    families = {item.family for item in found}
    frames = [item.start for item in found if item.family == "hearing"]
    for item in found:
        if item.family in _HARMS and (
            item.family not in _RETOLD or item.start < min(frames, default=len(part.words))
        ):
            return "harm"
    if part.question:
        return "suggest" if "suggest" in families and part.words[0] not in _ASKING else "ask"
    doing = [item for item in found if item.family in _JOBS]
    # A step is an offer where the sentence opens with it, or after "If you feel up to it, ...".
    opens = {0} | (part.breaks if part.words[0] in _LEADS else set())
    doing += [item for item in found if item.family == "step" and item.start in opens]
    if not doing:
        return "other"
    first = min(doing, key=lambda item: (item.start, _RANK.index(item.family))).family
    job = _JOBS.get(first, "suggest")
    if job == "suggest" and families & _SERVICES:
        return "help"
    if job == "acknowledge" and part.words[0] == "if":
        return "help" if families & _SERVICES else "suggest"
    return job


def _telling(words: Iterable[str]) -> frozenset[str]:
    """Return the stems that say what happened: feelings and stock words of sympathy left out."""
    slots = matcher("replies").words_of_slot
    return content(words) - content(slots("feeling") | slots("hard"))


def _neighbours(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return every two words side by side, with "I" and "my" put as "you" and "your"."""
    return list(pairwise(_TURNED.get(word, word) for word in words))


def _taken_up(
    message: Reading, told: _Pairs, words: Sequence[str], frames: Sequence[Found]
) -> float:
    """Grade a clause about the person by number and share of their own content words in it.

    A clause of small words only ("you cannot go on like this") is known by its word pairs.
    """
    spoken_of_self = "i" in words[:2] and not frames
    if not about_you(words) or (spoken_of_self and _SEEING.isdisjoint(words)):
        return 0.0
    framing = {word for item in frames for word in item.words.split()}
    said = content(word for word in words if word not in framing)
    own = said & message.stems
    pairs = _neighbours(words)
    if len(pairs) > 3 and sum(pair in told for pair in pairs) > 0.6 * len(pairs):
        return max(0.8, 1 - 0.4 ** len(own))
    return min(1.0, 2 * len(own) / len(said)) * (1 - 0.4 ** len(own)) if own else 0.0


def _misheard(message: Reading, part: Sentence, frame: Found, found: Sequence[Found]) -> bool:
    """Whether what follows a frame of hearing is mostly foreign to the message.

    Feelings may be inferred and words of the same topic are paraphrase; events and things that
    nothing in the message speaks of were never said. A danger may be named or asked about in
    general words, but a particular one that was not told is the worst to hear wrongly.
    """
    end = min((b for b in part.breaks if b > frame.end), default=len(part.words))
    heard, words, most = part.words[frame.start : end], part.words[frame.end : end], 0.34
    if not about_you(heard):
        return False
    tentative = not _TENTATIVE.isdisjoint(heard)
    if any(item.family in ("name_danger", "ask_danger") and item.start < end for item in found):
        words = tuple(word for word in words if word not in _DANGER)
        most = 0.5
    said = _telling(words)
    near = sum(s in message.stems or bool(topics_of([s]) & message.topics) for s in said)
    return len(said) > tentative and near <= (0.0 if tentative else most) * len(said)
