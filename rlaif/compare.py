"""Two columns of judged replies to the same prompts -> the report.

Which figures are compared is the table `QUANTITIES`; each is a column of `_columns` on the prompts
of some risks. Not here: judging the replies (`rlaif.evaluate`), the statistics (`rlaif.measures`),
the sentences (`rlaif.findings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif import findings
from rlaif.measures import Resampling, difference, distinctness, measure, shares_commonest_opening
from rlaif.results import RISKS, Comparison, JudgedReply, Report
from rlaif.safety import Gate

Column = list[float | None]


@dataclass(frozen=True)
class Quantity:
    """One row of the table: a column of the replies, among the prompts of some risks.

    Attributes:
        trials: the column holds outcomes (yes, no, tie), not amounts.
    """

    name: str
    column: str
    risks: tuple[str, ...]
    higher_is_better: bool | None
    trials: bool


QUANTITIES = (
    Quantity("win_rate", "preference", RISKS, True, True),
    Quantity("unsafe_rate", "unsafe", RISKS, False, True),
    Quantity("unsafe_rate_crisis", "unsafe", ("crisis",), False, True),
    Quantity("unsafe_rate_elevated", "unsafe", ("elevated",), False, True),
    Quantity("unsafe_rate_none", "unsafe", ("none",), False, True),
    Quantity("empathy", "empathy", RISKS, True, False),
    Quantity("helpfulness", "helpfulness", RISKS, True, False),
    Quantity("overcaution_rate", "overcautious", ("none",), False, True),
    Quantity("words", "words", RISKS, None, False),
    Quantity("words_non_crisis", "words", ("none", "elevated"), None, False),
    Quantity("repetition", "repetition", RISKS, False, False),
    Quantity("fluent", "fluent", RISKS, True, False),
    Quantity("truncated_rate", "truncated", RISKS, False, True),
    Quantity("distinct_replies", "distinct", RISKS, True, False),
    Quantity("common_opening", "common_opening", RISKS, False, True),
)
PER_RISK = (
    "win_rate",
    "unsafe_rate",
    "empathy",
    "helpfulness",
    "overcaution_rate",
    "words",
    "repetition",
)


def build_report(
    policy_rows: Sequence[JudgedReply],
    baseline_rows: Sequence[JudgedReply],
    preferences: Sequence[float | None],
    *,
    policy: str,
    baseline: str,
    policy_hash: str,
    evaluator: str,
    rubric: str,
    prompts_hash: str,
    gate: Gate,
    resampling: Resampling,
    n_outside: int = 0,
) -> Report:
    """Compare the two sides.

    Args:
        policy_rows: replies of the policy; several rows may share a prompt.
        baseline_rows: replies of the baseline; row i answers the prompt of the policy's row i.
        preferences: of row i: 1 = the policy's reply is better, 0.5 = tie, 0 = the baseline's,
            None = not judged.
        policy: name of the policy, as people will read it.
        baseline: name of the baseline.
        policy_hash: sha256 of the judged adapter's folder (`sft.files.sha256_of`).
        evaluator: who judged.
        rubric: by what (`name@hash`).
        prompts_hash: of the held-out prompts.
        gate: the conditions of a release.
        resampling: how the bootstrap draws prompts.
        n_outside: judged prompts that lie outside what the judge was made for; 0 = none.

    Raises:
        ValueError: the rows do not belong together.
    """
    _check_rows(policy_rows, baseline_rows, preferences)
    overall, by_risk = _tables(policy_rows, baseline_rows, preferences, resampling)
    named = {comparison.name: comparison for comparison in overall}
    checks = gate.checks(named)
    n_prompts = len({row.prompt_id for row in policy_rows})
    found = findings.find(
        named, by_risk, policy_rows, baseline_rows, n_prompts=n_prompts, n_outside=n_outside
    )
    return Report(
        policy=policy,
        baseline=baseline,
        policy_hash=policy_hash,
        evaluator=evaluator,
        rubric=rubric,
        prompts_hash=prompts_hash,
        n_prompts=n_prompts,
        measures=overall,
        by_risk=by_risk,
        findings=found,
        checks=checks,
        passed=all(check.passed for check in checks),
    )


def _tables(
    policy_rows: Sequence[JudgedReply],
    baseline_rows: Sequence[JudgedReply],
    preferences: Sequence[float | None],
    resampling: Resampling,
) -> tuple[list[Comparison], dict[str, list[Comparison]]]:
    """Compare every quantity over all prompts, and some among the prompts of each risk."""
    ours, theirs = _columns(policy_rows), _columns(baseline_rows)
    # The baseline's win rate is its own against the policy: each row of the table has two sides.
    ours["preference"] = list(preferences)
    theirs["preference"] = [None if p is None else 1 - p for p in preferences]
    prompts = [row.prompt_id for row in policy_rows]
    risks = [row.risk for row in policy_rows]

    def comparisons(quantities: Sequence[Quantity], among: Sequence[str]) -> list[Comparison]:
        made = []
        for quantity in quantities:
            keep = [i for i, risk in enumerate(risks) if risk in quantity.risks and risk in among]
            compared = _compare(
                quantity, ours[quantity.column], theirs[quantity.column], prompts, keep, resampling
            )
            made += [compared] if compared is not None else []
        return made

    overall = comparisons(QUANTITIES, RISKS)
    per_risk = [quantity for quantity in QUANTITIES if quantity.name in PER_RISK]
    by_risk = {risk: comparisons(per_risk, [risk]) for risk in RISKS if risk in risks}
    return overall, by_risk


def _check_rows(
    policy_rows: Sequence[JudgedReply],
    baseline_rows: Sequence[JudgedReply],
    preferences: Sequence[float | None],
) -> None:
    if not policy_rows or not len(policy_rows) == len(baseline_rows) == len(preferences):
        sizes = f"{len(policy_rows)}, {len(baseline_rows)}, {len(preferences)}"
        raise ValueError(f"policy rows, baseline rows and preferences must be as many: {sizes}")
    for i, (ours, theirs) in enumerate(zip(policy_rows, baseline_rows, strict=True)):
        if (ours.prompt_id, ours.risk) != (theirs.prompt_id, theirs.risk):
            raise ValueError(
                f"row {i} is {ours.prompt_id} ({ours.risk}) against {theirs.prompt_id}"
            )


def _columns(rows: Sequence[JudgedReply]) -> dict[str, Column]:
    texts = [row.text for row in rows]
    return {
        "unsafe": [None if row.safe is None else float(not row.safe) for row in rows],
        "empathy": [row.empathy for row in rows],
        "helpfulness": [row.helpfulness for row in rows],
        "fluent": [row.fluent for row in rows],
        "overcautious": [None if row.unscored else float(row.overcautious) for row in rows],
        "words": [float(row.words) for row in rows],
        "repetition": [row.repetition for row in rows],
        "truncated": [float(row.stop == "length") for row in rows],
        "distinct": list(distinctness(texts)),
        "common_opening": [float(shares) for shares in shares_commonest_opening(texts)],
    }


def _compare(
    quantity: Quantity,
    ours: Column,
    theirs: Column,
    prompts: Sequence[str],
    keep: Sequence[int],
    resampling: Resampling,
) -> Comparison | None:
    """Measure both sides, and their difference, on the rows of `keep`; None without a verdict."""
    clusters = [prompts[i] for i in keep]
    kept_ours, kept_theirs = [ours[i] for i in keep], [theirs[i] for i in keep]
    better, trials = quantity.higher_is_better, quantity.trials
    policy, baseline = (
        measure(
            quantity.name,
            side,
            clusters,
            trials=trials,
            higher_is_better=better,
            resampling=resampling,
        )
        for side in (kept_ours, kept_theirs)
    )
    if policy is None:
        return None
    gap = difference(
        quantity.name,
        kept_ours,
        kept_theirs,
        clusters,
        higher_is_better=better,
        resampling=resampling,
    )
    return Comparison(quantity.name, policy, baseline, gap)
