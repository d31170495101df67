"""Candidates to assessments: every candidate gets a score or a reason why not, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from reward.evaluator import Assessment, BulkEvaluator, Evaluator, PartlyAssessed
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import CheckFailed, read_rows, storage_errors, to_json

MOST_REASONS = 6  # that a message lists


def score(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    advance: Callable[[int], None],
    *,
    partial: Path,
) -> list[Assessment]:
    """Let the evaluator judge all candidates: all at once where it can, else prompt by prompt.

    Args:
        evaluator: who judges.
        prompts: the prompts that the candidates answer.
        candidates: replies, grouped or not.
        advance: called with the number of candidates finished, for a progress line.
        partial: file that grows with the verdicts, so that a stopped run pays nothing twice;
            verdicts in it by another evaluator or rubric do not count, and what it has without a
            score is asked again, because the cause may be mended. An evaluator with a ledger
            needs none.

    Raises:
        EvaluatorStopped: the evaluator cannot go on; what it had finished is in `partial`.
        StorageError: the disk is full.
    """
    if isinstance(evaluator, BulkEvaluator):
        return evaluator.assess_all(prompts, candidates, advance)
    verdicts = _earlier(partial, evaluator)
    asked: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        asked.setdefault(candidate.prompt_id, []).append(candidate)
    with storage_errors(partial), partial.open("a", encoding="utf-8") as file:

        def keep(found: Sequence[Assessment]) -> None:
            verdicts.update((assessment.candidate_id, assessment) for assessment in found)
            file.writelines(to_json(assessment) + "\n" for assessment in found)
            file.flush()

        for prompt in prompts:
            group = asked.get(prompt.id, [])
            new = [candidate for candidate in group if candidate.id not in verdicts]
            try:
                keep(evaluator.assess(prompt, new) if new else [])
            except PartlyAssessed as stopped:
                keep(stopped.finished)
                raise
            advance(len(group))
    return [verdicts[candidate.id] for candidate in candidates]


def live_note(evaluator: Evaluator) -> Callable[[], str] | None:
    """What the evaluator has to say beside the count of candidates; None = nothing."""
    return evaluator.note if isinstance(evaluator, BulkEvaluator) else None


def facts(evaluator: Evaluator) -> dict[str, float]:
    """What was measured of the evaluator while it judged."""
    return dict(evaluator.facts) if isinstance(evaluator, BulkEvaluator) else {}


def plan_line(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    others: Sequence[Path],
) -> str:
    """What scoring would ask and cost beside what other ledgers answer; nobody is called."""
    if isinstance(evaluator, BulkEvaluator):
        return evaluator.forecast(prompts, candidates, others).line()
    return f"dry run: {len(candidates)} candidates, {evaluator.name} asks nobody and costs nothing"


def _earlier(partial: Path, evaluator: Evaluator) -> dict[str, Assessment]:
    """Verdicts of a stopped run; its last line may have been cut off by a kill."""
    if not partial.is_file() or not partial.stat().st_size:
        return {}
    whole = partial.read_text(encoding="utf-8").rpartition("\n")[0]
    partial.write_text(whole + "\n" if whole else "", encoding="utf-8")
    rows = read_rows(partial, Assessment) if whole else []
    same = (evaluator.name, evaluator.rubric)
    return {
        row.candidate_id: row for row in rows if row.scored and (row.evaluator, row.rubric) == same
    }


def judged_line(evaluator: Evaluator, counts: Mapping[str, float]) -> str:
    """What `summary` counted, in one line."""
    means = "none scored, "
    if "quality" in counts:
        means = f"quality {counts['quality']:.2f}, unsafe {counts['unsafe_share']:.1%}, "
    return (
        f"{counts['candidates']:.0f} candidates judged by {evaluator.name} ({evaluator.rubric}): "
        f"{means}unscored {counts['unscored']:.0f}; beside them {counts['borrowed']:.0f} borrowed, "
        f"{counts['borrowed_unsafe']:.0f} unsafe here"
    )


def check_unscored(assessments: Sequence[Assessment], limit: float) -> None:
    """Refuse to go on with an evaluator that fails too often.

    Raises:
        CheckFailed: the share of unscored candidates is above `limit` (0..1); with the reasons and
            their counts.
    """
    reasons = Counter(a.unscored for a in assessments if a.unscored is not None)
    unscored, total = sum(reasons.values()), len(assessments)
    if unscored > limit * total:
        common = reasons.most_common(MOST_REASONS)
        listed = ", ".join(f"{count} {reason}" for reason, count in common)
        if rest := unscored - sum(count for _, count in common):
            listed += f", {rest} for other reasons"  # some services number their messages
        raise CheckFailed(
            f"{unscored} of {total} candidates have no score ({unscored / total:.1%}, limit "
            f"{limit:.1%}): {listed}. Mend the cause, or raise score.max_unscored"
        )


def summary(candidates: Sequence[Candidate], assessments: Sequence[Assessment]) -> dict[str, float]:
    """Counts and means for the terminal, the manifest and tracking.

    They tell of the policy, so borrowed replies, misfits on purpose, are counted apart. A mean of
    nothing is left out.
    """
    borrowed = {candidate.id for candidate in candidates if candidate.borrowed}
    misfits = [a for a in assessments if a.candidate_id in borrowed]
    assessments = [a for a in assessments if a.candidate_id not in borrowed]
    scored = [a for a in assessments if a.quality is not None]
    n = len(scored)
    unsafe = sum(not a.safe for a in scored)
    graded = {
        name: [a.criteria[name] for a in scored if name in a.criteria]
        for name in dict.fromkeys(name for a in scored for name in a.criteria)
    }
    means = {f"criteria/{name}": fmean(grades) for name, grades in graded.items()}
    if scored:
        means["unsafe_share"] = unsafe / n
        means["quality"] = fmean(a.quality for a in scored if a.quality is not None)
    said = Counter(outcome for a in assessments for outcome in a.compared.values())
    return {
        "candidates": len(assessments),
        "unscored": len(assessments) - n,
        "unsafe": unsafe,
        **means,
        "borrowed": len(misfits),
        "borrowed_unsafe": sum(a.safe is False for a in misfits),
        "tokens": sum(a.tokens for a in [*assessments, *misfits]),
        "cost": sum(a.cost for a in [*assessments, *misfits]),
        # Each comparison is in two assessments.
        **{f"compared/{outcome}": n / 2 for outcome, n in sorted(said.items())},
    }
