"""The practice clinic's counsellors, good and bad: replies built from acts, one sentence each."""

import random
from dataclasses import dataclass

from sft.clinic import Bank, Profile, Topic, load_bank, mirror, sentence
from sft.data import Risk

WORDS = (25, 85)  # length of a reply, in words
SENTENCES = (3, 4, 4, 5, 5)
AT_MOST = {"suggest": 2}  # sentences of one act in a reply; the others come once
ORDER = ("acknowledge", "reflect", "inform", "suggest", "plan", "refer", "ask")
SHARE_GENERIC = 0.12  # suggestions, plans and questions that are not of the topic
SHARE_HALF_STEP = 0.12  # unsafe replies to a crisis that still take one step of concern
SHARE_SECOND_BAD = 0.25
SHARE_REFLECT_CUE = 0.5  # reflections at risk that take up the cue, in a crisis or not

# (act, sentence) in order; the act reflect_cue reflects the danger, so it names it too
Reply = list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """What a counsellor can know of a person: clauses in the person's words, cue "" = no risk."""

    topic: Topic
    risk: Risk
    told: tuple[str, ...]
    cue: str
    later: bool


def write_reply(rng: random.Random, case: Case, profile: Profile) -> Reply:
    """Return a reply of 25..85 words as this counsellor would give it."""
    while True:
        reply = _draft(rng, case, profile)
        words = sum(len(text.split()) for _, text in reply)
        if WORDS[0] <= words <= WORDS[1]:
            return reply


def _draft(rng: random.Random, case: Case, profile: Profile) -> Reply:
    bank = load_bank()
    if case.risk == "crisis" and rng.random() < profile.crisis:
        return _crisis_reply(rng, case, profile)
    acts = _choose_acts(rng, case, profile)
    reply: Reply = []
    for act in acts:
        reply.append((act, _say(rng, bank, act, case, reply)))
    if case.risk == "crisis" and rng.random() < SHARE_HALF_STEP:
        act = rng.choice(("name_danger", "stay"))
        reply.insert(rng.randrange(2), (act, rng.choice(bank.acts[act])))
    if case.risk == "none" and rng.random() < profile.eager:
        act = rng.choice(("pressure", "resources", "ask_safety"))
        reply[-1] = (act, rng.choice(bank.acts[act]))
    if profile.bad_acts and rng.random() < profile.bad:
        _spoil(rng, bank, reply, profile)
    return reply


def _choose_acts(rng: random.Random, case: Case, profile: Profile) -> list[str]:
    """Draw acts by the counsellor's weights, and put them into their usual order."""
    room = {act: AT_MOST.get(act, 1) for act in profile.want}
    acts: list[str] = []
    for _ in range(rng.choice(SENTENCES)):
        open_acts = [act for act in room if room[act]]
        act = rng.choices(open_acts, [profile.want[a] for a in open_acts])[0]
        room[act] -= 1
        acts.append(act)
    risk = "none" if case.risk == "none" else "elevated"
    if rng.random() < profile.refer[risk]:
        place = rng.randrange(len(acts)) if len(acts) == max(SENTENCES) else len(acts)
        acts[place : place + 1] = ["refer"]
    acts.sort(key=ORDER.index)
    if "ask" in acts and len(acts) > 2 and rng.random() < 0.3:  # a question may come early
        acts.remove("ask")
        acts.insert(2, "ask")
    return acts


def _crisis_reply(rng: random.Random, case: Case, profile: Profile) -> Reply:
    """Name the danger or ask about it, give resources, and stay with the person."""
    bank = load_bank()
    warm = profile.want["acknowledge"] >= 1
    acts = ["acknowledge"] if warm and rng.random() < 0.6 else []
    if warm and rng.random() < SHARE_REFLECT_CUE:
        acts.append("reflect_cue")
    named = rng.random() < 0.8
    acts += ["name_danger"] if named else []
    acts += ["ask_safety"] if not named or rng.random() < 0.8 else []
    acts.append("resources")
    acts += ["distance"] if rng.random() < 0.45 else []
    acts += ["stay"] if rng.random() < (0.8 if warm else 0.4) else []
    acts += ["refer"] if rng.random() < 0.15 else []
    reply: Reply = []
    for act in acts:
        reply.append((act, _say(rng, bank, act, case, reply)))
    return reply


def _spoil(rng: random.Random, bank: Bank, reply: Reply, profile: Profile) -> None:
    """Put one or two bad acts in the place of other sentences."""
    names = list(profile.bad_acts)
    count = 2 if rng.random() < SHARE_SECOND_BAD else 1
    for place in rng.sample(range(len(reply)), count):
        act = rng.choices(names, list(profile.bad_acts.values()))[0]
        reply[place] = (act, bad_sentence(rng, bank, act))


def bad_sentence(rng: random.Random, bank: Bank, act: str) -> str:
    """Return a wording of a bad act with its condition or medicine filled in."""
    text = rng.choice(bank.acts[act])
    return text.format(
        condition=rng.choice(bank.acts["condition"]), medicine=rng.choice(bank.acts["medicine"])
    )


def _say(rng: random.Random, bank: Bank, act: str, case: Case, before: Reply) -> str:
    """Return one sentence for a good act that says nothing twice."""
    acts = bank.acts
    generic = rng.random() < SHARE_GENERIC
    if act in ("suggest", "plan"):
        own = case.topic.suggest if act == "suggest" else case.topic.plan
        said = " ".join(text for _, text in before)
        open_ideas = [do for do in (acts[f"{act}_generic"] if generic else own) if do not in said]
        frames = acts["suggest_more" if any(a == act for a, _ in before) else act]
        return rng.choice(frames).format(do=rng.choice(open_ideas))
    if act == "ask":
        return rng.choice(acts["ask_generic"] if generic else case.topic.questions)
    if act == "inform":
        return rng.choice(acts["inform_generic"] if generic else case.topic.facts)
    if act == "reflect":
        told = case.told
        if case.risk == "elevated" and rng.random() < SHARE_REFLECT_CUE:
            told = (case.cue,)
        return sentence(rng.choice(acts["reflect"]).format(hear=mirror(rng.choice(told))))
    if act == "reflect_cue":  # only frames that do not turn a wish to die into one worry of many
        return sentence(rng.choice(acts["reflect"][:3]).format(hear=mirror(case.cue)))
    if act == "acknowledge" and case.later and rng.random() < 0.5:
        act = "acknowledge_later"
    return rng.choice(acts[act])
