"""The practice clinic's people, and the material made from their talks with counsellors.

A person has a concern: a situation and a feeling of one topic, a question, and, where the message
carries a risk, a cue such as "everyone would be better off without me". Everything follows from
the seed; which phrases are for training and which for held-out prompts, `sft.sides` says.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sft.clinic import Profile, Topic, load_bank, sentence
from sft.counsellors import Case, Reply, write_reply
from sft.data import Demonstration, Message, Prompt, Risk, Split, prompt_id
from sft.sides import beside, kept_out, used_in_training

SOURCE = "practice-clinic"
WORDS = (15, 60)  # length of what a person writes, in words
SHARE_LATER = 0.22  # prompts with two turns of the person; a risk is then told in the second
SHARE_UNSEEN = 0.42  # held-out prompts with a phrase that is kept out of training
DEMONSTRATION_CRISIS, DEMONSTRATION_ELEVATED = 0.03, 0.10
BASE_SHARES: dict[Risk, float] = {"crisis": 0.32, "elevated": 0.26, "none": 0.42}
BASE_LATER = 0.3


@dataclass(frozen=True)
class _Person:
    """What one person has to say; an empty text is not said.

    Attributes:
        cue: What carries the risk; it is told in the second turn where there is one.
        later: Opens the second turn.
    """

    topic: Topic
    risk: Risk
    situation: str
    feeling: str
    ask: str
    cue: str
    later: str


def practice_prompts(
    split: Split,
    n: int,
    seed: int,
    *,
    crisis_share: float = 1 / 3,
    elevated_share: float = 1 / 4,
) -> list[Prompt]:
    """Return n different prompts, with these shares (0..1) of messages at risk, in mixed order."""
    rng = random.Random(f"prompts {split} {seed}")
    return [
        Prompt(prompt_id(messages), messages, SOURCE, person.topic.name, person.risk, split)
        for person, messages in _people(rng, split, n, crisis_share, elevated_share)
    ]


def practice_demonstrations(n: int, seed: int) -> list[Demonstration]:
    """Return n demonstrations of middling quality; as in real sets, few are of a crisis."""
    rng = random.Random(f"demonstrations {seed}")
    rows = []
    for person, messages in _people(rng, "train", n, DEMONSTRATION_CRISIS, DEMONSTRATION_ELEVATED):
        profile = _draw_profile(rng, "practice_demonstrations")
        reply = write_reply(rng, _case(person), profile)
        name = prompt_id(messages)
        rows.append(Demonstration(name, messages, [_message(reply)], person.topic.name))
    return rows


def base_corpus(n: int, seed: int) -> list[list[Message]]:
    """Return n conversations of good and bad counsellors, for the base model.

    Each is user and assistant, once or twice, with people of the training side only.
    """
    rng = random.Random(f"base {seed}")
    corpus = []
    for risk in rng.choices(list(BASE_SHARES), list(BASE_SHARES.values()), k=n):
        person = _draw_person(rng, "train", risk, BASE_LATER)
        profile = _draw_profile(rng, "base_corpus")
        messages = _messages(rng, person, profile)
        reply = write_reply(rng, _case(person), profile)
        corpus.append([*messages, _message(reply)])
    return corpus


def _people(
    rng: random.Random, split: Split, n: int, crisis_share: float, elevated_share: float
) -> list[tuple[_Person, list[Message]]]:
    """Draw n people who write different messages."""
    crisis, elevated = round(n * crisis_share), round(n * elevated_share)
    counts: dict[Risk, int] = {"crisis": crisis, "elevated": elevated}
    counts["none"] = n - crisis - elevated
    risks = [risk for risk, count in counts.items() for _ in range(count)]
    rng.shuffle(risks)
    profile = load_bank().profiles["steady"]
    drawn: dict[str, tuple[_Person, list[Message]]] = {}
    for risk in risks:
        before = len(drawn)
        while len(drawn) == before:
            person = _draw_person(rng, split, risk, SHARE_LATER)
            messages = _messages(rng, person, profile)
            drawn.setdefault(prompt_id(messages), (person, messages))
    return list(drawn.values())


def _draw_person(rng: random.Random, split: Split, risk: Risk, share_later: float) -> _Person:
    """Draw a person of this side of the split."""
    bank = load_bank()
    topics = list(bank.topics.values())
    topic = rng.choices(topics, [t.share for t in topics])[0]
    later = rng.random() < share_later
    at_risk = risk != "none"
    banks = {}
    if later or not at_risk or rng.random() < 0.5:
        banks["feeling"] = topic.feelings
    if rng.random() < (0.5 if at_risk else 0.8):
        banks["ask"] = topic.asks
    if risk == "crisis":
        banks["cue"] = bank.people[rng.choice(("crisis_direct", "crisis_indirect"))]
    elif risk == "elevated":
        banks["cue"] = bank.people["elevated"]
    if later:
        banks["later"] = bank.people["later_openers" if at_risk else "followups"]
    unseen = ""
    if split == "held_out" and rng.random() < SHARE_UNSEEN:
        unseen = rng.choice(["situation", *banks])
    while True:
        situations = kept_out if unseen == "situation" else used_in_training
        situation = rng.choice(situations(topic.situations))
        choices = {
            slot: beside(situation, phrases, split)
            for slot, phrases in banks.items()
            if slot != "later"  # what opens a second turn goes with every situation
        }
        if later:
            choices["later"] = used_in_training(banks["later"])
        if unseen in banks:
            choices[unseen] = kept_out(banks[unseen])
        if all(choices.values()):
            said = {slot: rng.choice(phrases) for slot, phrases in choices.items()}
            texts = [said.get(slot, "") for slot in ("feeling", "ask", "cue", "later")]
            return _Person(topic, risk, situation, *texts)


def _messages(rng: random.Random, person: _Person, profile: Profile) -> list[Message]:
    """Write down what the person says, with the counsellor's first reply between two turns."""
    while True:
        first = _first_turn(rng, person)
        later = _later_turn(rng, person)
        words = len(f"{first} {later}".split())
        if WORDS[0] <= words <= WORDS[1]:
            break
    messages = [{"role": "user", "content": first}]
    if later:
        case = Case(person.topic, "none", _told(person), cue="", later=False)
        messages.append(_message(write_reply(rng, case, profile)))
        messages.append({"role": "user", "content": later})
    return messages


def _first_turn(rng: random.Random, person: _Person) -> str:
    people = load_bank().people
    situation = _led(rng, people["leads"], person.situation)
    clauses = [situation]
    if person.feeling:
        feeling = _led(rng, people["feeling_leads"], person.feeling)
        clauses.insert(rng.choice((0, 1, 1, 1)), feeling)
    if person.cue and not person.later:
        clauses.insert(rng.randrange(len(clauses) + 1), person.cue)
    if rng.random() < 0.3:  # two clauses become one sentence
        place = rng.randrange(len(clauses))
        joined = ", and ".join(clauses[place : place + 2])
        clauses[place : place + 2] = [joined]
    parts = [sentence(clause) for clause in clauses]
    if rng.random() < 0.3:
        parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(people["times"]))
    if person.ask and not (person.later and person.cue):
        parts.insert(len(parts) - (rng.random() < 0.15), person.ask)
    if rng.random() < 0.35:
        parts.insert(0, rng.choice(people["openers"]))
    return " ".join(parts)


def _later_turn(rng: random.Random, person: _Person) -> str:
    if not person.later:
        return ""
    parts = [person.later]
    if person.cue:
        parts.append(sentence(person.cue))
        parts += [person.ask] if person.ask else []
    return " ".join(parts)


def _led(rng: random.Random, leads: Sequence[str], clause: str) -> str:
    return f"{rng.choice(leads)} {clause}" if rng.random() < 0.3 else clause


def _told(person: _Person) -> tuple[str, ...]:
    return tuple(clause for clause in (person.situation, person.feeling) if clause)


def _case(person: _Person) -> Case:
    return Case(person.topic, person.risk, _told(person), person.cue, later=bool(person.later))


def _draw_profile(rng: random.Random, mix: str) -> Profile:
    bank = load_bank()
    shares = bank.mixes[mix]
    return bank.profiles[rng.choices(list(shares), list(shares.values()))[0]]


def _message(reply: Reply) -> Message:
    return {"role": "assistant", "content": " ".join(text for _, text in reply)}
