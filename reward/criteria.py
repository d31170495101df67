"""Grades of one reply from what it says: features from 0 to 1, added with fixed shares.

What counts is whether a thing is done well once, by a sentence of its own; a second earns little
and a third nothing (`once`), so that neither more words nor more stock phrases raise a grade.
Sentences that say nothing to this person are left out first; that there are some costs clarity. The
shares are judgements from the rubric's anchors and from EPITOME (emotional reaction, interpretation
and exploration, each none, weak or strong); none is fitted.
"""

import math

from reward.fluency import Fluency
from reward.grades import Case, Grade, add_up, asking, once, said_case
from reward.helping import danger_help, helpfulness, straying
from reward.reading import Reading, content, repeats, topics_of
from reward.roles import about_you
from sft.data import Risk

_LONGEST = 260  # words; more tire someone in distress
_IN_DANGER = (
    *("name_danger", "ask_danger", "crisis_line", "emergency"),
    *("someone_now", "beside", "means_safety"),
)


def grade_reply(message: Reading, reply: Reading, fluent: Fluency, risk: Risk) -> dict[str, Grade]:
    """Grade a reply to a message on every criterion that wording can tell."""
    case = said_case(message, reply, fluent, risk)
    return {
        "empathy": _empathy(case),
        "relevance": _relevance(case),
        "helpfulness": danger_help(case) if risk == "crisis" else helpfulness(case),
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


def _acknowledging(case: Case) -> list[float]:
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


def _empathy(case: Case) -> Grade:
    said, each = case.said, case.roles
    about = sum(about_you(part.words) for part in case.reply.sentences) / len(each)
    heard = once(role.takes_up for role in each)
    bad = _losses(said)
    if misheard := sum(role.mishears for role in each):
        bad["hears what was not said"] = min(0.3, 0.2 * misheard)
    kind = once(_acknowledging(case))
    if case.risk == "crisis":
        named = 0.8 * ("name_danger" in said)
        near = {"ask_danger", "beside", "someone_now"} & said
        good = {
            "acknowledges the feeling": (0.4, kind),
            "hears the danger": (0.3, max(heard, named, once((heard, named)))),
            "asks directly, stays near": (0.22, once(float(f in near) for f in sorted(near))),
            "speaks to the person": (0.08, about),
        }
        return add_up(good, bad, case.fluent.factor)
    good = {
        "acknowledges the feeling": (0.36, kind),
        "takes up the person's words": (0.3, heard),
        "asks openly": (0.24, asking(case)),
        "speaks to the person": (0.1, about),
    }
    if (questions := sum(part.question for part in case.reply.sentences)) > 3:
        bad["questions pile up"] = 0.05 * (questions - 3)
    return add_up(good, bad, case.fluent.factor)


def _relevance(case: Case) -> Grade:
    message, reply, said = case.message, case.reply, case.said
    topics = set(message.topics)
    shared = topics & reply.topics
    words = message.stems & reply.stems
    covered = len(shared) / min(3, len(topics)) if topics else 0.5
    if case.risk == "crisis":  # the danger is the concern, whatever words it came in
        named = once(float(f in said) for f in ("name_danger", "ask_danger"))
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
        "says nothing beside the point": (0.1, own / len(case.whole.sentences)),
        "keeps to the concern": (0.15, _near(case) ** 0.5),
    }
    bad = {"advises on another concern": 0.3 * straying(case)}
    if misheard := sum(role.mishears for role in case.roles):
        bad["hears what was not said"] = min(0.3, 0.15 * misheard)
    if topics and not shared and not words and covered < 0.5:
        bad["speaks of something else"] = 0.25
    return add_up(good, bad, case.fluent.factor)


def _near(case: Case) -> float:
    """Return the share of the reply's content words that are the message's or of its topics."""
    stems, message = case.reply.stems, case.message
    if case.risk == "crisis":
        return case.share("acknowledge hear help ask")
    near = sum(s in message.stems or not topics_of([s]).isdisjoint(message.topics) for s in stems)
    return near / max(1, len(stems))


def _clarity(case: Case) -> Grade:
    reply, fluent = case.reply, case.fluent
    lengths = [len(part.words) for part in reply.sentences]
    mean = sum(n * n for n in lengths) / sum(lengths)  # of the sentence that a word stands in
    used = sum(role.job != "other" for role in case.roles)
    good = {
        "sentence length": (0.25, math.exp(-((max(0.0, mean - 16) / 16) ** 2))),
        "no endless sentence": (0.15, min(1.0, 40 / max(lengths))),
        "length": (0.2, min(1.0, (_LONGEST / case.whole.words) ** 0.5)),
        "plain words": (0.2, 1 - min(1.0, 8 * max(0.0, fluent.strange - 0.05))),
        "no filler": (0.2, used / len(case.whole.sentences)),
    }
    # A forgotten full stop is a slip: any sentence put behind it would seem to mend a break.
    bad = {
        "breaks off": 0.3 if fluent.broken_off else 0.05 if fluent.cut_off else 0.0,
        "says it twice": repeats(case.whole),
    }
    return add_up(good, bad, fluent.factor)


def _ordering(reply: Reading) -> float:
    """Return the share of sentences that order among those that order or offer."""
    orders = {item.sentence for item in reply.of("order")}
    offers = {item.sentence for item in reply.of("option", "suggest")} - orders
    return len(orders) / max(2, len(orders) + len(offers))


def _autonomy(case: Case) -> Grade:
    said, reply, crisis = case.said, case.reply, case.risk == "crisis"
    optional = {item.sentence for item in reply.of("option", "suggest")}
    orders = {item.sentence for item in reply.of("order")}
    offered = {n for n, role in enumerate(case.roles) if role.job == "suggest"} & optional - orders
    asks = float(any(part.question for part in reply.sentences))
    good = {
        "no pressure": (0.35, 1.0),
        # In danger plain directions are kind.
        "offers options": (0.4, 1.0 if crisis else once(1.0 for _ in offered)),
        "asks": (0.25, asks),
    }
    bad = {
        "moralises": 0.3 if said & {"moralising", "dismissal"} else 0.0,
        "insists": 0.25 if "forced_referral" in said and case.risk == "none" else 0.0,
        "orders": 0.0 if crisis else 0.4 * _ordering(reply),
    }
    return add_up(good, bad, case.fluent.factor)
