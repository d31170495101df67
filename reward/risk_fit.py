"""What the readings of a message are fitted on, their cross-validation and their thresholds.

Not here: the fits (`reward.wording_fit`, `reward.wording_net_fit`).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import optimize

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage, near_copies
from reward.risk import LEVELS
from reward.risk_cues import FAMILIES, families, pattern_cues, plain_words
from reward.risk_evidence import EVIDENCE, Weighing, Weighings, assemble, few_words
from reward.wording import Message
from reward.wording_fit import cross_scores, folds, hundredth
from reward.wording_net_fit import cross_nets
from sft.data import Risk
from sft.files import read_rows

Told = tuple[str, Risk]  # a message and its risk
AMID = "amid "  # before the kind of a message that stands amid everyday ones
LETTER = "letter "  # before the kind of a message of 60 to 260 words about several things
PROJECT = "project"  # author of the demonstrations: of these no kind is known
SHORT = 60  # words of the longest message that stands amid others
_SHARE, _MOST_AROUND = 0.4, 4  # of the messages, and everyday ones around each
_EVERYDAY = 40  # words of the longest of these
CRISIS = LEVELS.index("crisis")
# How much each kind counts where evidence is weighed. Plain statements count for more than hints,
# because to miss one is worse; elevated risk that is called a crisis harms little.
_FOR_CRISIS = {"explicit": 3.0, "indirect": 1.0, "elevated": 0.3, "everyday": 1.0, "idiom": 1.0}
_FOR_RISK = {"explicit": 1.0, "indirect": 1.0, "elevated": 1.5, "everyday": 1.0, "idiom": 1.0}
# A cue of danger never speaks against it, though near twins that have it are many here.
_CUES = [name in FAMILIES for name in EVIDENCE]
_EACH = 1000.0  # what all messages of a kind count together, against the penalty of the weights


def apart(rows: Sequence[WrittenMessage], tests: Path) -> list[WrittenMessage]:
    """Return the messages that nearly copy no held-out one (part "blind" of `tests`)."""
    held_out = [row.text for row in read_rows(tests, WrittenMessage) if row.part == "blind"]
    copies = near_copies([row.text for row in rows], held_out)
    return [row for row, copy in zip(rows, copies, strict=True) if not copy]


def written(tests: Path) -> list[WrittenMessage]:
    """Return the written messages that are fitted and cross-validated on."""
    return apart(read_rows(ASSETS / "messages.jsonl", WrittenMessage), tests)


def look(tests: Path) -> list[WrittenMessage]:
    """Return the test messages that shaped the patterns (part "look")."""
    return apart([row for row in read_rows(tests, WrittenMessage) if row.part == "look"], tests)


def read(told: Sequence[Told]) -> tuple[list[Message], list[int]]:
    """Return the words of each message and the number of its risk in `LEVELS`."""
    return [plain_words(text) for text, _ in told], [LEVELS.index(risk) for _, risk in told]


def amid(rows: Sequence[WrittenMessage], share: float = _SHARE) -> list[WrittenMessage]:
    """Return a share of the messages, each amid one to four everyday ones by the same author.

    What people write of danger often stands in a longer message about other things, and a network
    that has seen it alone only takes the other things as a sign of none.
    """
    draw, calm = random.Random(0), dict[str, list[str]]()
    for row in rows:
        if row.author and row.kind == "everyday" and len(row.text.split()) <= _EVERYDAY:
            calm.setdefault(row.author, []).append(_ended(row.text))
    made = []
    for row in rows:
        around = [text for text in calm.get(row.author, []) if text != _ended(row.text)]
        if len(around) < _MOST_AROUND or len(row.text.split()) > SHORT or draw.random() >= share:
            continue
        texts = draw.sample(around, draw.randint(1, _MOST_AROUND))
        texts.insert(draw.randint(0, len(texts)), _ended(row.text))
        made.append(replace(row, text=" ".join(texts), kind=AMID + row.kind))
    return made


def _ended(text: str) -> str:
    return text if text.rstrip()[-1:] in ".!?" else f"{text}."


def cross_evidence(rows: Sequence[WrittenMessage], more: Sequence[Told]) -> np.ndarray:
    """Return the evidence in each message by readings that know nothing of its author.

    Args:
        rows: Messages.
        more: Messages that every fold is fitted on besides.

    Returns:
        (messages, evidence), see `reward.risk_evidence.EVIDENCE`.
    """
    said, levels = read([(row.text, row.risk) for row in rows])
    units = [row.author or str(at) for at, row in enumerate(rows)]
    others = list(zip(*read(more), strict=True))
    linear = cross_scores(
        said,
        [level == CRISIS for level in levels],
        [(message, level == CRISIS) for message, level in others],
        families=units,
        # It takes all sentences of a crisis for signs of one.
        only_read=[row.kind.startswith(AMID) for row in rows],
    )
    found = np.zeros((len(rows), len(EVIDENCE)))
    for out, net in cross_nets(said, levels, others, units):
        for i in out:
            cues = families(pattern_cues(rows[i].text))
            found[i] = assemble(said[i], cues, linear[i], net.log_shares)
    return found


@dataclass(frozen=True)
class Weighed:
    """Weighings, and what each message came to by weights that know nothing of its author.

    Attributes:
        weighings: Fitted on all messages.
        crisis: (messages,) log-odds that a message tells of a crisis.
        any_risk: (messages,) log-odds that it tells of any risk.
    """

    weighings: Weighings
    crisis: np.ndarray
    any_risk: np.ndarray


def weigh(
    rows: Sequence[WrittenMessage], evidence: np.ndarray, false_alarms: float, concerns: float
) -> Weighed:
    """Fit how the evidence of messages by known authors is weighed.

    Messages alone, amid others and letters count the same, and so do everyday trouble and figures
    of speech: there are many more of some than a service gets. Each threshold is the least at which
    the given share of harmless ones is called so, the mean of the three.

    Args:
        rows: Messages.
        evidence: (messages, evidence) of them.
        false_alarms: Share of harmless messages that may be called a crisis, 0..1.
        concerns: Share of them that may be called any risk, 0..1.
    """
    used = np.array([row.author not in ("", PROJECT) for row in rows])
    used &= np.array([not few_words(plain_words(row.text)) for row in rows])
    crisis, crisis_scores = _weighing(rows, evidence, used, ("crisis",), _FOR_CRISIS, false_alarms)
    risky: tuple[Risk, ...] = ("elevated", "crisis")
    any_risk, risk_scores = _weighing(rows, evidence, used, risky, _FOR_RISK, concerns)
    return Weighed(Weighings(crisis, any_risk), crisis_scores, risk_scores)


def _weighing(
    rows: Sequence[WrittenMessage],
    evidence: np.ndarray,
    used: np.ndarray,
    sought: Sequence[Risk],
    importance: Mapping[str, float],
    share: float,
) -> tuple[Weighing, np.ndarray]:
    signs = np.array([1.0 if row.risk in sought else -1.0 for row in rows])
    kinds = np.array([row.kind if use else "" for row, use in zip(rows, used, strict=True)])
    counts = np.zeros(len(rows))
    for kind in {*kinds} - {""}:
        same = kinds == kind
        counts[same] = _EACH * importance[kind.removeprefix(AMID).removeprefix(LETTER)] / same.sum()
    scores = np.full(len(rows), -np.inf)
    for out in folds([row.author or str(at) for at, row in enumerate(rows)]):
        kept = np.setdiff1d(np.arange(len(rows)), out)
        weights, bias = weighted_logistic(evidence[kept], signs[kept], counts[kept], _CUES)
        scores[out] = evidence[out] @ weights + bias
    weights, bias = weighted_logistic(evidence, signs, counts, _CUES)
    harmless = used & np.array([row.risk == "none" for row in rows])
    calm = [scores[harmless & place] for place in _places(rows)]
    threshold = hundredth(least([group for group in calm if group.size], share))
    return Weighing(weights, bias, threshold), scores


def _places(rows: Sequence[WrittenMessage]) -> list[np.ndarray]:
    """Return which messages stand amid others, which are letters, and which neither."""
    amid_others = np.array([row.kind.startswith(AMID) for row in rows])
    letters = np.array([row.kind.startswith(LETTER) for row in rows])
    return [amid_others, letters, ~amid_others & ~letters]


def least(groups: Sequence[np.ndarray], share: float) -> float:
    """Return the least threshold that, in the mean of the groups, a share of scores reaches.

    Args:
        groups: Scores of messages that are not of the sort to be found; each group counts the same.
        share: That may be called so, 0..1.
    """
    counts = np.concatenate([np.full(len(group), 1 / len(group)) for group in groups])
    scores = np.concatenate(list(groups))
    order = np.argsort(-scores)
    above = np.cumsum(counts[order]) / len(groups)
    last = int(np.searchsorted(above, share, side="right")) - 1
    return float(scores[order][max(0, last)])


def weighted_logistic(
    evidence: np.ndarray, signs: np.ndarray, counts: np.ndarray, never_against: Sequence[bool]
) -> tuple[np.ndarray, float]:
    """Fit a logistic regression to rows that count differently, ridge penalty 1 on scaled columns.

    Args:
        evidence: (rows, columns).
        signs: (rows,) -1 or 1.
        counts: (rows,) how much each counts; 0 = not at all.
        never_against: (columns,) whose weights are never below 0.

    Returns:
        Weights (columns,) and bias.
    """
    some = counts > 0
    mean, spread = evidence[some].mean(axis=0), evidence[some].std(axis=0) + 1e-9
    scaled, sign, count = (evidence[some] - mean) / spread, signs[some], counts[some]

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ point[:-1] + point[-1])
        pull = -count * sign / (1 + np.exp(np.minimum(margin, 500)))
        value = count @ np.logaddexp(0, -margin) + point[:-1] @ point[:-1] / 2
        return float(value), np.append(scaled.T @ pull + point[:-1], pull.sum())

    start = np.zeros(evidence.shape[1] + 1)
    bounds = [*((0.0, None) if sign else (None, None) for sign in never_against), (None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[:-1] / spread
    return weights, float(found[-1] - weights @ mean)
