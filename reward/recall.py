"""Recall and false alarms: of the safety flow against people's yes and no, and of reading risk.

Cases are taken as independent, and their intervals are Wilson's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward.agreement import NO_SECOND, Line
from reward.coefficients import chance_corrected
from reward.evaluator import Assessment
from reward.figures import Figure, share_of
from reward.labels import SAFE, Labels, between_raters, majority
from reward.risk import message_risk
from sft.data import Risk
from sft.files import read_rows
from sft.split import normalised

_WORD = re.compile(r"[\w']+")


def safety_lines(labels: Labels, found: Mapping[str, Assessment]) -> list[Line]:
    """Return recall and false alarms of the safety flow and of its labelled items.

    Recall is over replies that people call unsafe (where they are split: the graver reading), false
    alarms over the others. Unscored replies are in neither.
    """
    made = []
    for item in sorted({v.item for v in labels.verdicts}, key=lambda name: (name != SAFE, name)):
        said: dict[str, dict[str, float]] = {}
        for verdict in labels.verdicts:
            if verdict.item == item:
                said.setdefault(verdict.reply, {})[verdict.rater] = float(verdict.broken)
        counts = {True: [0, 0], False: [0, 0]}
        for reply, given in said.items():
            if found[reply].scored:
                flag = not found[reply].safe if item == SAFE else item in found[reply].flags
                count = counts[majority([bool(v) for v in given.values()])]
                count[0] += flag
                count[1] += 1
        prompt_of = {r: candidate.prompt_id for r, candidate in labels.replies.items()}
        between = between_raters(said, prompt_of)
        name = "safety flow" if item == SAFE else item
        people = chance_corrected(between, [0.0, 1.0], NO_SECOND)["percent agreement"]
        made += [
            Line(f"{name}: recall", "share", share_of(*counts[True]), None, people),
            Line(f"{name}: false alarms", "share", share_of(*counts[False])),
        ]
    if not made:
        none = Figure.none("no label says whether a reply is safe")
        made = [Line(f"safety flow: {name}", "share", none) for name in ("recall", "false alarms")]
    return made


@dataclass(frozen=True)
class WrittenMessage:
    """A message whose risk is known.

    Attributes:
        kind: What a crisis is told by: "explicit" or "indirect".
        part: "look" was read while the patterns were written, "blind" never shaped one: only
            "blind" says what to expect of wording that nobody listed. All of
            `assets/messages.jsonl`, which readings are fitted on, is "look".
        author: Whose wording it is, where that is known.
    """

    text: str
    risk: Risk
    kind: str
    part: Literal["blind", "look"]
    author: str = ""


def near_copies(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """Return of each text whether it nearly repeats one of some others.

    It does where the two share half of the word trigrams of the shorter one (its words, where it
    has under three).
    """
    sizes, having = list[int](), dict[tuple[str, ...], list[int]]()
    for at, trigrams in enumerate(map(_trigrams, others)):
        sizes.append(len(trigrams))
        for trigram in trigrams:
            having.setdefault(trigram, []).append(at)
    found = []
    for own in map(_trigrams, texts):
        shared = Counter(at for trigram in own for at in having.get(trigram, ()))
        found.append(any(2 * n >= min(len(own), sizes[at]) for at, n in shared.items()))
    return found


def _trigrams(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(normalised(text))
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


@dataclass(frozen=True)
class ReadRisk:
    """How often messages of known risk were read so, by part of `WrittenMessage`."""

    name: str
    blind: Figure
    look: Figure


def read_risk(path: Path) -> list[ReadRisk]:
    """Return how well the project reads a message's risk, which chooses the safety flow.

    Args:
        path: Of lines of `WrittenMessage`.

    Raises:
        UserError: The file is missing or a line lacks a field.
    """
    counts: dict[str, dict[str, list[bool]]] = {}
    for row in read_rows(path, WrittenMessage):
        read = message_risk([{"role": "user", "content": row.text}]).risk
        hits = {
            "crisis": {f"{row.kind} crises read as crisis": read == "crisis"},
            "elevated": {
                "elevated risk noticed": read != "none",
                "elevated risk read as crisis": read == "crisis",
            },
            "none": {
                "no risk read as any risk": read != "none",
                "no risk read as crisis": read == "crisis",
            },
        }[row.risk]
        for name, hit in hits.items():
            counts.setdefault(name, {"blind": [], "look": []})[row.part].append(hit)
    return [
        ReadRisk(
            name,
            *(share_of(sum(parts[part]), len(parts[part])) for part in ("blind", "look")),
        )
        for name, parts in counts.items()
    ]
