"""Which demonstrations are worth learning from: paraphrases, scenario labels, filters, figures.

What the filters look for stands in `assets/curation.yaml`. They are word patterns: they catch what
is plainly said and miss what is merely implied, so a person still reads the data. What is unsafe is
a later package's rule and comes in as a required argument. Not here: reading and splitting
(`sft.data`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from sft.data import Demonstration, Message, Risk, content_key
from sft.files import read_rows
from sft.split import normalised

ASSETS = Path(__file__).parent / "assets"
OTHER = "other"  # the label of a text that has no term of any scenario
NAME_WEIGHT = 3  # a concern's own name against 1 for one of its signs

SHORTEST = 10  # words of an answer
LONGEST = 400  # words; nobody in distress reads more
OPENING_SHARE = 0.05  # of different answers that may open with the same words
OPENING_REPEATS = 3  # so often an opening may repeat in any case: shares of small sets mean nothing

WhyUnsafe = Callable[[Demonstration], str | None]
_ANY_WORD = r"(?:(?!(?:not|never|no|rarely|seldom|hardly) )[\w']+ )?"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class ProjectDemonstration:
    """One of the project's own question-answer pairs, with other wordings of its last question."""

    id: str
    topic: str
    risk: Risk
    prompt: list[Message]
    completion: list[Message]
    paraphrases: list[str]


class Curated(NamedTuple):
    """What the filters kept, and what they dropped by reason (a row counts under its first)."""

    kept: list[Demonstration]
    dropped: dict[str, list[Demonstration]]


@dataclass(frozen=True)
class Opening:
    """First words of answers: in how many different answers, and in what share of them (0..1)."""

    text: str
    count: int
    share: float


@dataclass(frozen=True)
class _Rules:
    topics: dict[str, tuple[list[re.Pattern[str]], list[re.Pattern[str]]]]  # names, signs
    boilerplate: re.Pattern[str]
    myths: dict[str, re.Pattern[str]]
    spared: re.Pattern[str]
    denied: re.Pattern[str]


def project_rows() -> list[ProjectDemonstration]:
    """Read the 98 pairs that were written for this project."""
    return read_rows(ASSETS / "demonstrations.jsonl", ProjectDemonstration)


def project_demonstrations(paraphrases: bool = True) -> list[Demonstration]:
    """Return the project's demonstrations: 98 pairs, or 98 x (1 + 3) = 392 with paraphrases."""
    rows = project_rows()
    pairs = [Demonstration(row.id, row.prompt, row.completion, row.topic, row.risk) for row in rows]
    if not paraphrases:
        return pairs
    return expand_paraphrases(pairs, {row.id: row.paraphrases for row in rows})


def expand_paraphrases(
    rows: Iterable[Demonstration], paraphrases: Mapping[str, Sequence[str]]
) -> list[Demonstration]:
    """Return each row followed by its paraphrases: the last question reworded, the answer kept.

    A paraphrase keeps the `prompt_id` of its row: by it a split keeps all wordings of a question on
    one side.

    Args:
        rows: Demonstrations as they are.
        paraphrases: Other wordings by `prompt_id`; a row without any stays alone.
    """
    expanded: list[Demonstration] = []
    for row in rows:
        expanded.append(row)
        for text in paraphrases.get(row.prompt_id, ()):
            asked = {"role": "user", "content": text}
            expanded.append(replace(row, prompt=[*row.prompt[:-1], asked]))
    return expanded


def label_topic(text: str) -> str:
    """Return the scenario that a person's words are about, or "other".

    Example: `label_topic("I lie awake until three every night") == "sleep"`.
    """
    plain = _plain(text)
    best, most = OTHER, 0
    for topic, (names, signs) in _rules().topics.items():
        score = NAME_WEIGHT * _present(names, plain) + _present(signs, plain)
        if score > most:
            best, most = topic, score
    return best


def myth_in(text: str) -> str | None:
    """Return which misinformation or stereotype a text states, None where it states none."""
    rules = _rules()
    for sentence in _SENTENCE_END.split(_plain(text)):
        if rules.denied.search(sentence):
            continue
        for reason, pattern in rules.myths.items():
            found = pattern.search(sentence)
            if found and not rules.spared.search(sentence[: found.start()]):
                return reason
    return None


def boilerplate_openings(rows: Iterable[Demonstration], words: int = 4) -> list[Opening]:
    """Return the openings that several different answers share, most frequent first.

    Paraphrases share one answer, which counts once.

    Args:
        rows: Demonstrations.
        words: Length of an opening; letter case and punctuation do not count.
    """
    answers = {normalised(_answer(row)) for row in rows}
    count = Counter(_opening(answer, words) for answer in answers)
    return [Opening(text, n, n / len(answers)) for text, n in count.most_common() if n > 1]


def filter_demonstrations(
    rows: Sequence[Demonstration],
    why_unsafe: WhyUnsafe,
    *,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
) -> Curated:
    """Drop what should not be learned from, each row for its first reason in the order below.

    Repeated question and answer; too short; too long; boilerplate opening; misinformation or
    stereotype; unsafe; an opening that too many other answers have (the first few of those stay).

    Args:
        rows: Demonstrations in order of preference: of repeated ones the first stays.
        why_unsafe: Returns why a demonstration is unsafe, None where it is safe. Required: a set
            that nobody checked teaches what nobody wants.
        shortest: Fewest words of an answer.
        longest: Most words of an answer.
    """
    kept: list[Demonstration] = []
    dropped: dict[str, list[Demonstration]] = defaultdict(list)
    seen: set[str] = set()
    for row in rows:
        key = content_key([*row.prompt, *row.completion])
        reason = "repeated" if key in seen else _fault(row, shortest, longest)
        if reason is None and (why := why_unsafe(row)) is not None:
            reason = f"unsafe: {why}"
        seen.add(key)
        (kept if reason is None else dropped[reason]).append(row)
    overused = _overused(kept)
    for row in kept:
        if normalised(_answer(row)) in overused:
            dropped["overused opening"].append(row)
    kept = [row for row in kept if normalised(_answer(row)) not in overused]
    return Curated(kept, dict(dropped))


def report(before: Sequence[Demonstration], curated: Curated) -> dict[str, object]:
    """Return the figures of a curation, with their arithmetic, ready for JSON."""
    dropped = {reason: len(rows) for reason, rows in sorted(curated.dropped.items())}
    total = sum(dropped.values())
    parts = " + ".join(map(str, dropped.values())) or "0"
    topics = Counter(row.topic or OTHER for row in curated.kept)
    return {
        "read": len(before),
        "kept": len(curated.kept),
        "dropped": dropped,
        "arithmetic": f"{len(before)} read - ({parts}) dropped = {len(before) - total} kept",
        "questions": len({row.prompt_id for row in curated.kept}),
        "topics": {topic: f"{n} of {len(curated.kept)}" for topic, n in topics.most_common()},
        "openings_before": [asdict(each) for each in boilerplate_openings(before)[:5]],
        "openings_after": [asdict(each) for each in boilerplate_openings(curated.kept)[:5]],
    }


def _fault(row: Demonstration, shortest: int, longest: int) -> str | None:
    answer = _answer(row)
    words = len(answer.split())
    if words < shortest:
        return "too short"
    if words > longest:
        return "too long"
    if _rules().boilerplate.match(_plain(answer)):
        return "boilerplate opening"
    return myth_in(answer)


def _overused(rows: Sequence[Demonstration]) -> set[str]:
    """Return the answers beyond the share that one opening may have, in the order of the rows."""
    answers = list(dict.fromkeys(normalised(_answer(row)) for row in rows))
    allowed = max(OPENING_REPEATS, int(OPENING_SHARE * len(answers)))
    count: Counter[str] = Counter()
    overused: set[str] = set()
    for answer in answers:
        opening = _opening(answer, 4)
        count[opening] += 1
        if count[opening] > allowed:
            overused.add(answer)
    return overused


def _answer(row: Demonstration) -> str:
    return row.completion[0]["content"]


def _opening(answer: str, words: int) -> str:
    return " ".join(re.findall(r"[\w']+", _plain(answer))[:words])


def _plain(text: str) -> str:
    """Return the text normalised, with the straight apostrophe that the patterns have."""
    return normalised(text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _present(terms: Sequence[re.Pattern[str]], text: str) -> int:
    return sum(term.search(text) is not None for term in terms)


@cache
def _rules() -> _Rules:
    raw = yaml.safe_load((ASSETS / "curation.yaml").read_text(encoding="utf-8"))
    return _Rules(
        topics={
            topic: (_terms(lists["names"]), _terms(lists["signs"]))
            for topic, lists in raw["topics"].items()
        },
        boilerplate=_any(raw["boilerplate"]),
        myths={reason: _any(patterns) for reason, patterns in raw["myths"].items()},
        spared=_any(raw["spared"]),
        denied=_any(raw["denied"]),
    )


def _terms(listed: str) -> list[re.Pattern[str]]:
    """Return a pattern per comma-separated term: whole words, `*` for any ending."""
    terms = [re.escape(term.strip()).replace(r"\*", r"\w*") for term in listed.split(",")]
    return [re.compile(rf"(?<!\w){term}(?!\w)") for term in terms]


def _any(patterns: Sequence[str]) -> re.Pattern[str]:
    joined = "|".join(rf"(?:(?<!\w)(?:{pattern}))" for pattern in patterns)
    return re.compile(joined.replace("ANY", _ANY_WORD))
