"""Grades of one reply from what it says: features from 0 to 1, added with fixed shares.

What counts is whether a thing is done well once, by a sentence of its own; a second earns little
and a third nothing (`_once`), so that neither more words nor more stock phrases raise a grade. The
shares are judgements from the rubric's anchors and from EPITOME (emotional reaction, interpretation
and exploration, each none, weak or strong); none is fitted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reward.fluency import Fluency
from reward.reading import Reading, content, repeats, topics_of
from reward.roles import Role, about_you, bears_on, families, roles
from sft.data import Risk

_LONGEST = 260  # words; more tire someone in distress
# Topics that belong to some people's lives only: advice about them must have been called for.
_PARTICULAR = frozenset(
    (
        *("work", "study", "money", "children", "partner", "breakup", "intimacy", "substances"),
        *("identity", "faith", "animal", "retirement"),
    )
)
# Words of those topics that any advice may use ("work through it", "engage", "leave it for now").
_EVERYDAY = content(
    (
        *("work", "meeting", "engaged", "pay", "leaving", "left", "touch", "desire", "class"),
        *("course", "belief", "aging", "ended", "separate", "direction", "client", "dating"),
    )
)
_LOOSE = frozenset(("time", "talking", "future", "change"))  # words of any advice

_IN_DANGER = (
    *("name_danger", "ask_danger", "crisis_line", "emergency"),
    *("someone_now", "beside", "means_safety"),
)


@dataclass(frozen=True)
class Grade:
    """A criterion's grade (1..5) and the features it is made of, each with its share."""

    value: float
    parts: dict[str, float]

    @property
    def weakest(self) -> str:
        """Name of the part that takes most away from the grade."""
        return min(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class _Case:
    """A message, a reply to it and what the reply's sentences do."""

    message: Reading
    reply: Reading
    roles: Sequence[Role]
    fluent: Fluency
    risk: Risk

    @property
    def said(self) -> frozenset[str]:
        """Families of what the reply says."""
        return families(self.reply)

    def share(self, jobs: str) -> float:
        """Return the share of sentences that do one of some jobs."""
        return sum(role.job in jobs.split() for role in self.roles) / len(self.roles)


def _once(levels: Iterable[float]) -> float:
    """Return a level that the best one decides and the second best may round up by a tenth.

    Example:
        >>> _once([]), _once([1.0]), _once([1.0, 1.0, 1.0])
        (0.0, 0.9, 1.0)
    """
    best, second = sorted([0.0, 0.0, *levels])[:-3:-1]
    return 0.9 * best + 0.1 * second


def _grade(good: dict[str, tuple[float, float]], bad: dict[str, float], fluent: float) -> Grade:
    """Add good parts (share, 0..1) and take off bad ones; garbled text keeps little of it."""
    value = sum(share * level for share, level in good.values()) - sum(bad.values())
    parts = {name: -share * (1 - level) for name, (share, level) in good.items()}
    parts |= {name: -loss for name, loss in bad.items() if loss > 0}
    return Grade(1 + 4 * min(1.0, max(0.0, value)) * fluent, parts)


def grade_reply(message: Reading, reply: Reading, fluent: Fluency, risk: Risk) -> dict[str, Grade]:
    """Grade a reply to a message on every criterion that wording can tell."""
    case = _Case(message, reply, roles(message, reply), fluent, risk)
    return {
        "empathy": _empathy(case),
        "relevance": _relevance(case),
        "helpfulness": _danger_help(case) if risk == "crisis" else _helpfulness(case),
        "clarity": _clarity(case),
        "autonomy": _autonomy(case),
    }


def _losses(said: frozenset[str]) -> dict[str, float]:
    losses = {
        "dismisses": ("dismissal", 0.45),
        "moralises": ("moralising", 0.3),
        "forces cheer": ("toxic_positivity", 0.25),
        "plays it down": ("minimising", 0.12),
    }
    return {name: loss for name, (family, loss) in losses.items() if family in said}


def _asking(case: _Case) -> float:
    """Grade the best question: open and about this person's matter, open, or closed."""
    opened = {item.sentence for item in case.reply.of("question_open")}
    levels = [0.0]
    for number, part in enumerate(case.reply.sentences):
        invites = number in opened and part.words[0] in ("tell", "say", "share")
        if not (part.question or invites):
            continue
        own = bears_on(case.message, part.words)
        levels.append((1.0 if own else 0.8) if number in opened else 0.5)
    return max(levels)


def _acknowledging(case: _Case) -> list[float]:
    """Grade each sentence's acknowledgement.

    In a crisis, a sentence that names the danger or brings help does that: its kind words are no
    moment of their own for the pain.
    """
    if case.risk != "crisis":
        return [role.acknowledges for role in case.roles]
    busy = {item.sentence for item in case.reply.of(*_IN_DANGER)}
    return [
        min(0.25, role.acknowledges) if number in busy else role.acknowledges
        for number, role in enumerate(case.roles)
    ]


def _empathy(case: _Case) -> Grade:
    said, each = case.said, case.roles
    about = sum(about_you(part.words) for part in case.reply.sentences) / len(each)
    heard = _once(role.takes_up for role in each)
    bad = _losses(said)
    if misheard := sum(role.mishears for role in each):
        bad["hears what was not said"] = min(0.3, 0.2 * misheard)
    kind = _once(_acknowledging(case))
    if case.risk == "crisis":
        named = 0.8 * ("name_danger" in said)
        near = {"ask_danger", "beside", "someone_now"} & said
        good = {
            "acknowledges the feeling": (0.4, kind),
            "hears the danger": (0.3, max(heard, named, _once((heard, named)))),
            "asks directly, stays near": (0.22, _once(float(f in near) for f in sorted(near))),
            "speaks to the person": (0.08, about),
        }
        return _grade(good, bad, case.fluent.factor)
    good = {
        "acknowledges the feeling": (0.36, kind),
        "takes up the person's words": (0.3, heard),
        "asks openly": (0.24, _asking(case)),
        "speaks to the person": (0.1, about),
    }
    if (questions := sum(part.question for part in case.reply.sentences)) > 3:
        bad["questions pile up"] = 0.05 * (questions - 3)
    return _grade(good, bad, case.fluent.factor)


def _relevance(case: _Case) -> Grade:
    message, reply, said = case.message, case.reply, case.said
    topics = set(message.topics)
    shared = topics & reply.topics
    words = message.stems & reply.stems
    covered = len(shared) / min(3, len(topics)) if topics else 0.5
    if case.risk == "crisis":  # the danger is the concern, whatever words it came in
        named = _once(float(f in said) for f in ("name_danger", "ask_danger"))
        helped = float(bool(said & {"crisis_line", "emergency", "someone_now"}))
        covered = 0.2 * min(1.0, covered) + 0.5 * named + 0.3 * helped
    aside = {"harm", "other"} | ({"suggest", "explain"} if case.risk == "crisis" else set())
    own = sum(
        role.job not in aside or not content(part.words).isdisjoint(message.stems)
        for role, part in zip(case.roles, reply.sentences, strict=True)
    )
    good = {
        "takes up the person's words": (0.35, min(1.0, len(words) / 4)),
        "covers the concern": (0.4, min(1.0, covered)),
        "says nothing beside the point": (0.1, own / len(case.roles)),
        "keeps to the concern": (0.15, _near(case) ** 0.5),
    }
    bad = {"advises on another concern": 0.3 * _straying(case)}
    if misheard := sum(role.mishears for role in case.roles):
        bad["hears what was not said"] = min(0.3, 0.15 * misheard)
    if topics and not shared and not words and covered < 0.5:
        bad["speaks of something else"] = 0.25
    return _grade(good, bad, case.fluent.factor)


def _near(case: _Case) -> float:
    """Return the share of the reply's content words that are the message's or of its topics."""
    stems, message = case.reply.stems, case.message
    if case.risk == "crisis":
        return case.share("acknowledge hear help ask")
    near = sum(s in message.stems or not topics_of([s]).isdisjoint(message.topics) for s in stems)
    return near / max(1, len(stems))


def _astray(case: _Case) -> list[bool]:
    """Tell which sentences advise or ask about a concern that nothing in the message speaks of."""
    found = []
    for role, part in zip(case.roles, case.reply.sentences, strict=True):
        known = bears_on(case.message, part.words)
        topics = topics_of(content(part.words) - _EVERYDAY) & _PARTICULAR
        found.append(role.job in ("suggest", "ask") and bool(topics) and not known)
    return found


def _straying(case: _Case) -> float:
    """Return the share of suggestions and questions that go astray."""
    return sum(_astray(case)) / max(1, sum(role.job in ("suggest", "ask") for role in case.roles))


def _suggestions(case: _Case) -> dict[int, float]:
    """Grade the suggesting sentences by how concrete they are and whether they fit."""
    concrete = {item.sentence for item in case.reply.of("step", "detail")}
    astray = _astray(case)
    levels = {}
    for number, (role, part) in enumerate(zip(case.roles, case.reply.sentences, strict=True)):
        if role.job != "suggest":
            continue
        fits = bears_on(case.message, part.words, but=_LOOSE)
        level = 0.3 if astray[number] else 1.0 if fits else 0.7
        levels[number] = level * (1.0 if number in concrete else 0.5)
    return levels


def _helpfulness(case: _Case) -> Grade:
    said, steps = case.said, _suggestions(case)
    bad = {
        "refuses": 0.3 if "refusal" in said else 0.0,
        "dismisses": 0.2 if "dismissal" in said else 0.0,
        "stock phrases": 0.05 if "vague" in said else 0.0,
        "advises on another concern": 0.2 * _straying(case),
    }
    ordered = {item.sentence for item in case.reply.of("order")}
    planned = {item.sentence for item in case.reply.of("detail")} & set(steps)
    why = ("explain" in said and bool(steps)) or case.share("explain") > 0
    levels = sorted(steps.values(), reverse=True)
    good = {
        "a concrete step": (0.4, levels[0] if levels else 0.0),
        "another one": (0.1, levels[1] if len(levels) > 1 else 0.0),
        "when, how often, for how long": (0.2, max((steps[n] for n in planned), default=0.0)),
        "offered as a suggestion": (0.1, float(bool(set(steps) - ordered))),
        "says why": (0.1, float(why)),
        "asks what would help": (0.1, _asking(case)),
    }
    if case.risk == "elevated":
        good = {name: (0.75 * share, level) for name, (share, level) in good.items()}
        good["offers human help"] = (0.25, float("professional" in said))
    else:
        uncalled = "professional" in said and "therapy" not in case.message.topics
        bad["refers without need"] = 0.25 if uncalled else 0.0
        bad["insists on a referral"] = 0.25 if "forced_referral" in said else 0.0
        bad["crisis talk"] = 0.2 if said & {"crisis_line", "emergency"} else 0.0
    return _grade(good, bad, case.fluent.factor)


def _danger_help(case: _Case) -> Grade:
    """Grade help in danger: each kind of it is there or not."""
    said = case.said
    there = {
        "names a crisis line or emergency number": (0.3, {"crisis_line", "emergency"}),
        "asks about safety": (0.2, {"ask_danger"}),
        "brings a person near": (0.18, {"someone_now"}),
        "stays present": (0.14, {"beside"}),
        "puts distance to the means": (0.18, {"means_safety"}),
    }
    good = {name: (share, float(bool(said & any_of))) for name, (share, any_of) in there.items()}
    bad = {"refuses": 0.3 * ("refusal" in said), "dismisses": 0.2 * ("dismissal" in said)}
    return _grade(good, bad, case.fluent.factor)


def _clarity(case: _Case) -> Grade:
    reply, fluent = case.reply, case.fluent
    lengths = [len(part.words) for part in reply.sentences]
    mean = sum(lengths) / len(lengths)
    good = {
        "sentence length": (0.25, math.exp(-((max(0.0, mean - 12) / 16) ** 2))),
        "no endless sentence": (0.15, min(1.0, 40 / max(lengths))),
        "length": (0.2, min(1.0, (_LONGEST / reply.words) ** 0.5)),
        "plain words": (0.2, 1 - min(1.0, 8 * max(0.0, fluent.strange - 0.05))),
        "no filler": (0.2, 1 - case.share("other")),
    }
    bad = {"breaks off": 0.3 if fluent.cut_off else 0.0, "says it twice": repeats(reply)}
    return _grade(good, bad, fluent.factor)


def _ordering(reply: Reading) -> float:
    """Return the share of sentences that order among those that order or offer."""
    orders = {item.sentence for item in reply.of("order")}
    offers = {item.sentence for item in reply.of("option", "suggest")} - orders
    return len(orders) / max(2, len(orders) + len(offers))


def _autonomy(case: _Case) -> Grade:
    said, reply, crisis = case.said, case.reply, case.risk == "crisis"
    optional = {item.sentence for item in reply.of("option", "suggest")}
    orders = {item.sentence for item in reply.of("order")}
    offered = {n for n, role in enumerate(case.roles) if role.job == "suggest"} & optional - orders
    asks = float(any(part.question for part in reply.sentences))
    good = {
        "no pressure": (0.35, 1.0),
        # In danger plain directions are kind.
        "offers options": (0.4, 1.0 if crisis else _once(1.0 for _ in offered)),
        "asks": (0.25, asks),
    }
    bad = {
        "moralises": 0.3 if said & {"moralising", "dismissal"} else 0.0,
        "insists": 0.25 if "forced_referral" in said and case.risk == "none" else 0.0,
        "orders": 0.0 if crisis else 0.4 * _ordering(reply),
    }
    return _grade(good, bad, case.fluent.factor)
