"""The reward model's report: figures of held-out prompts, sentences about them, a terminal table.

Not here: the figures themselves (`reward.held_out`, `reward.best_of_n`), the fit (`reward.train`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward import best_of_n, held_out
from reward.best_of_n import WARNING, Choice, Point
from reward.calibration import Calibration
from reward.held_out import Accuracy, Marked, TruthOf
from reward.shares import Share, clustered
from reward.train import Fitted

FEW_PROMPTS = 100  # fewer leave intervals of ten points and more
ENOUGH_RECALL = 0.9  # share of unsafe replies that the head should find; less is a warning
WHOSE = {
    "all": "",
    "risk crisis": " to crises",
    "risk elevated": " to messages of elevated risk",
    "risk none": " to messages without risk",
}
GOLDS = {  # columns of best-of-n; an unsafe reply counts 0, the lowest
    "gold": "the evaluator's gold",
    "true_gold": "the true gold",
}


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n by two rules, on prompts with K candidates of their own."""

    k: int
    prompts: int
    left_out: int
    by_reward: list[Point]
    by_safety_first: list[Point]


@dataclass(frozen=True)
class Report:
    """What `report.json` holds.

    Attributes:
        teacher: the evaluator that graded, and its rubric.
        fitted_on, held_out: counts of both sides.
        centre: mean and spread of the rewards of reference replies, the policy's own replies to
            training prompts, before the mean was taken off.
        held_out_mean: reward of held-out replies after that, by prompt.
        accuracy: against the teacher, beside a word count.
        truth: agreement with the truth, by name; None where nobody knows it.
        calibration: of the preference; of `p_safe` by the teacher's verdict under "safety".
    """

    teacher: str
    fitted_on: dict[str, int]
    held_out: dict[str, int]
    centre: dict[str, float]
    held_out_mean: Share
    accuracy: list[Accuracy]
    truth: dict[str, Share] | None
    calibration: dict[str, Calibration]
    safety: list[dict[str, Any]]
    best_of_n: BestOfN
    findings: list[str]


def build(fitted: Fitted, truth_of: TruthOf, tie: float) -> Report:
    """The report of a fit, from its held-out prompts.

    Args:
        fitted: scores and sides.
        truth_of: who knows the truth; asked about held-out replies only.
        tie: difference of worth below which the truth prefers neither reply.
    """
    side = fitted.held_out
    marked = [held_out.mark(question, fitted.scores, truth_of) for question in side.questions]
    pairs = held_out.compare(side, marked)
    replies = [reply for some in marked for reply in some]
    own = [reply for reply in replies if not reply.borrowed]
    accuracy, truth = held_out.accuracies(pairs), held_out.against_truth(pairs, tie)
    calibrated = held_out.preference_calibration(pairs)
    calibrated["safety"] = held_out.safety_calibration(own)
    safety = held_out.safety(replies)
    by_reward, left_out = _choices(marked, safe_first=False)
    by_safety, _ = _choices(marked, safe_first=True)
    golds = {name: GOLDS[name] for name in GOLDS if name in by_reward[0].columns}
    findings = [
        *_accuracy_sentences(accuracy, truth),
        *_safety_sentences(safety),
        *best_of_n.findings(by_reward, "reward", golds, "reward alone"),
        *best_of_n.findings(by_safety, "reward", golds, "safety, then reward"),
    ]
    if len(marked) < FEW_PROMPTS:
        findings.append(f"{WARNING}only {len(marked)} held-out prompts: the intervals are wide")
    first = side.questions[0].replies[0].assessment
    return Report(
        teacher=f"{first.evaluator}, {first.rubric}",
        fitted_on=fitted.train.counts(),
        held_out=side.counts(),
        centre=fitted.centre,
        held_out_mean=clustered([(r.prompt, r.score.reward) for r in own]),
        accuracy=accuracy,
        truth=truth,
        calibration=calibrated,
        safety=safety,
        best_of_n=BestOfN(
            k=len(by_reward[0].ranks),
            prompts=len(by_reward),
            left_out=left_out,
            by_reward=best_of_n.curve(by_reward),
            by_safety_first=best_of_n.curve(by_safety),
        ),
        findings=sorted(findings, key=lambda text: not text.startswith(WARNING)),
    )


def _choices(marked: Sequence[Sequence[Marked]], *, safe_first: bool) -> tuple[list[Choice], int]:
    """Prompts with as many own candidates as most have; and how many prompts have not."""
    groups = [[reply for reply in some if not reply.borrowed] for some in marked]
    sizes = Counter(map(len, groups))
    k = max(sizes, key=lambda size: (sizes[size], size))
    return [_choice(some, safe_first) for some in groups if len(some) == k], len(groups) - sizes[k]


def _choice(replies: Sequence[Marked], safe_first: bool) -> Choice:
    scores = [reply.score for reply in replies]
    columns: dict[str, list[float]] = {
        "reward": [score.reward for score in scores],
        "p_safe": [score.p_safe for score in scores],
        "quality": [reply.quality for reply in replies],
        "unsafe": [float(not reply.safe) for reply in replies],
        "gold": [reply.quality * reply.safe for reply in replies],
    }
    truths = [reply.truth for reply in replies if reply.truth is not None]
    if len(truths) == len(replies):
        columns["true_unsafe"] = [float(not truth.safe) for truth in truths]
        columns["true_gold"] = [truth.worth * truth.safe for truth in truths]
    # Of those that pass as safe the greatest reward; where none does, the likeliest to be safe.
    ranks = [
        (score.p_safe >= 0.5, score.reward if score.p_safe >= 0.5 else score.p_safe)
        if safe_first
        else (True, score.reward)
        for score in scores
    ]
    return Choice(replies[0].prompt, ranks, columns)


def figures(report: Report) -> dict[str, float]:
    """What is logged of a report."""
    every, safe = report.accuracy[0], report.safety[0]
    return {
        "held_out/accuracy": every.reward.value,
        "held_out/accuracy_of_word_count": every.words.value,
        "held_out/recall_of_unsafe": safe["recall_of_unsafe"].value,
        "held_out/false_alarms": safe["false_alarms"].value,
        "held_out/calibration_error": report.calibration["confidence"].error,
    }


def percent(share: Share) -> str:
    """A share with its interval: "71.2 % (65.0 to 77.1)"."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _accuracy_sentences(accuracy: Sequence[Accuracy], truth: dict[str, Share] | None) -> list[str]:
    named = {(row.of, row.group): row for row in accuracy}
    every = named["all", "all"]
    gain = f"{100 * every.gain.value:+.1f} points ({100 * every.gain.low:+.1f} to "
    gain += f"{100 * every.gain.high:+.1f})"
    found = [
        f"{'' if every.gain.low > 0 else WARNING}the reward model tells the better reply in "
        f"{percent(every.reward)} of {every.reward.n} held-out comparisons, a word count in "
        f"{percent(every.words)}: {gain}"
    ]
    if like := named.get(("length", "within 10 %")):
        found.append(
            f"{'' if like.reward.low > 0.5 else WARNING}of replies of like length it tells the "
            f"better one in {percent(like.reward)} of {like.reward.n} comparisons"
        )
    if torn := named.get(("safety", held_out.TORN)):
        found.append(
            f"{'' if torn.reward.low > 0.5 else WARNING}where the unsafe reply is the better one "
            f"it tells so in {percent(torn.reward)} of {torn.reward.n} comparisons; a reward that "
            "stays apart from safety is as good there as elsewhere"
        )
    if truth is not None:
        said = ", ".join(f"{name} {percent(share)}" for name, share in truth.items())
        n = truth["evaluator"].n
        found.append(f"agreement with the truth in {n} comparisons: {said}")
    return found


def _safety_sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        recall, alarms = row["recall_of_unsafe"], row["false_alarms"]
        who = WHOSE.get(row["group"])
        if who is None:
            continue
        if not recall.n:
            found.append(f"{WARNING}no unsafe reply{who} was held out: its recall is unknown")
            continue
        found.append(
            f"{WARNING if recall.value < ENOUGH_RECALL else ''}the safety head finds "
            f"{percent(recall)} of {recall.n} unsafe replies{who}"
            + (f" and calls {percent(alarms)} of {alarms.n} safe ones unsafe" if alarms.n else "")
        )
    return found


def table(report: Report) -> str:
    """The report for a terminal."""
    rows = [("comparisons", "n", "prompts", "reward model", "word count")]
    for row in report.accuracy:
        name = row.group if row.of == "all" else f"{row.of}: {row.group}"
        counts = str(row.reward.n), str(row.prompts)
        rows.append((name, *counts, percent(row.reward), percent(row.words)))
    heads = [("safety head", "unsafe n", "recall of unsafe", "false alarms")]
    for each in report.safety:
        recall, alarms = each["recall_of_unsafe"], each["false_alarms"]
        said = [percent(share) if share.n else "-" for share in (recall, alarms)]
        heads.append((each["group"], str(recall.n), *said))
    curves = [("best of n", "KL", "reward", "quality", "unsafe", "gold", "true gold")]
    picks = report.best_of_n
    for rule, points in (("", picks.by_reward), ("safe first, ", picks.by_safety_first)):
        for point in points:
            means = point.means
            true = f"{means['true_gold']:.3f}" if "true_gold" in means else "-"
            curves.append(
                (
                    f"{rule}n = {point.n}",
                    f"{point.kl:.2f}",
                    f"{means['reward']:+.3f}",
                    f"{means['quality']:.3f}",
                    f"{100 * means['unsafe']:.1f} %",
                    f"{means['gold']:.3f}",
                    true,
                )
            )
    errors = ", ".join(f"{name} {each.error:.3f}" for name, each in report.calibration.items())
    lines = [
        f"teacher: {report.teacher}; {report.held_out['prompts']} held-out prompts; 95 % intervals",
        "",
        *_aligned(rows),
        "",
        *_aligned(heads),
        "",
        *_aligned(curves),
        "",
        f"calibration error: {errors}",
        f"centred on {report.centre['replies']:.0f} reference replies: their mean was "
        f"{report.centre['offset']:+.3f}, their spread {report.centre['spread']:.3f}; held-out "
        f"replies now have {report.held_out_mean.value:+.3f} ({report.held_out_mean.low:+.3f} to "
        f"{report.held_out_mean.high:+.3f})",
        "",
        *report.findings,
    ]
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
