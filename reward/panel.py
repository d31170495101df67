"""Several judges of the same replies; where they disagree is kept in each assessment.

Each judge counts the same, however often it was asked. Safety is the majority of the judges, and as
many safe as unsafe ones count as unsafe. A reply that one of them could not judge has no score: the
others' mean would be compared with means that hold that judge's severity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from reward.assemble import majority_safe, most_say
from reward.evaluator import (
    Assessment,
    BulkEvaluator,
    Evaluator,
    Judgement,
    PartlyAssessed,
    mean_quality,
)
from reward.forecast import Forecast
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import EvaluatorStopped

SPLIT = "panel_split"  # flag: the judges do not agree on safety


class Panel:
    """Asks several judges, one after the other, and joins what they say.

    Args:
        members: two or more of different names, who judge by the same rubric; those with a ledger
            share one file.

    Raises:
        ValueError: members that are no panel.
    """

    def __init__(self, members: Sequence[Evaluator]) -> None:
        names = [member.name for member in members]
        if len(set(names)) < max(2, len(names)) or len({m.rubric for m in members}) > 1:
            raise ValueError(f"a panel has different judges with the same rubric, not {names}")
        self.members = list(members)
        self.name = f"panel({', '.join(names)})"
        self.rubric = members[0].rubric
        bulk = [member for member in members if isinstance(member, BulkEvaluator)]
        self.ledger: Path | None = bulk[0].ledger if bulk else None
        self._at: Evaluator = members[0]

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        """Judge the candidates of one prompt."""
        return self.assess_all([prompt], candidates, lambda count: None)

    def assess_all(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        advance: Callable[[int], None],
    ) -> list[Assessment]:
        """Judge the candidates of many prompts; a candidate is finished when all have judged it.

        Raises:
            PartlyAssessed: a judge cannot go on; what was answered is in the ledger.
            UserError: another process works with the ledger.
            StorageError: the ledger cannot be written.
        """
        judged, told, votes = 0, 0, []

        def part(count: int) -> None:
            # The line counts candidates, not verdicts.
            nonlocal judged, told
            judged += count
            whole = judged // len(self.members)
            advance(whole - told)
            told = whole

        for judge in self.members:
            self._at = judge
            try:
                votes.append(_all_of(judge, prompts, candidates, part))
            except EvaluatorStopped as error:
                # Nobody was judged by all: there is no assessment yet.
                raise PartlyAssessed(f"{judge.name}: {error}", []) from error
        return [self._joined(c, each) for c, *each in zip(candidates, *votes, strict=True)]

    def forecast(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        others: Sequence[Path] = (),
    ) -> Forecast:
        """What all judges would be asked and what it would cost; nobody is called."""
        each = [
            member.forecast(prompts, candidates, others)
            for member in self.members
            if isinstance(member, BulkEvaluator)
        ]
        costs = [one.cost for one in each if one.cost is not None]
        return Forecast(
            sum(one.requests for one in each),
            sum(one.answered for one in each),
            sum(one.tokens_in for one in each),
            sum(one.tokens_out for one in each),
            sum(costs) if len(costs) == len(each) else None,
            sum(one.measured for one in each),
        )

    def note(self) -> str:
        """For a live line: who is asked, and what that judge has to say."""
        note = self._at.note() if isinstance(self._at, BulkEvaluator) else ""
        return f"{self._at.name} {note}".strip()

    @property
    def facts(self) -> dict[str, float]:
        """What the judges measured of themselves, by name."""
        return {
            f"{member.name}/{name}": value
            for member in self.members
            if isinstance(member, BulkEvaluator)
            for name, value in member.facts.items()
        }

    def _joined(self, candidate: Candidate, votes: Sequence[Assessment]) -> Assessment:
        tokens, cost = sum(vote.tokens for vote in votes), sum(vote.cost for vote in votes)
        for vote in votes:
            if vote.unscored is not None:
                # What one judge never sees for what it says, none does.
                reason = vote.unscored
                reason = (
                    reason if reason in ("injection", "empty") else f"{vote.evaluator}: {reason}"
                )
                return Assessment.without_score(
                    candidate,
                    reason,
                    evaluator=self.name,
                    rubric=self.rubric,
                    tokens=tokens,
                    cost=cost,
                )
        judgements = [each for vote in votes for each in _single(vote)]
        safe = majority_safe([vote.safe is True for vote in votes])
        quality = mean_quality(judgements)
        agreeing = [vote for vote in votes if vote.safe == safe]
        nearest = min(agreeing, key=lambda vote: abs((vote.quality or 0.0) - quality))
        graded = dict.fromkeys(name for vote in votes for name in vote.criteria)
        flags = dict.fromkeys(flag for vote in agreeing for flag in vote.flags)
        return Assessment(
            candidate_id=candidate.id,
            prompt_id=candidate.prompt_id,
            criteria={
                name: fmean(vote.criteria[name] for vote in votes if name in vote.criteria)
                for name in graded
            },
            quality=quality,
            safe=safe,
            flags=[*flags, *([SPLIT] if len(agreeing) < len(votes) else [])],
            critique=nearest.critique,
            evaluator=self.name,
            rubric=self.rubric,
            unscored=None,
            tokens=tokens,
            cost=cost,
            judgements=judgements,
            compared={
                other: most_say([vote.compared[other] for vote in votes])
                for other in votes[0].compared
                if all(other in vote.compared for vote in votes)
            },
        )


def _single(vote: Assessment) -> list[Judgement]:
    """A judge's single answers, or its one answer.

    Repeats that a judge split evenly over safety say "unsafe" in the judge's own assessment.
    """
    if vote.judgements:
        return vote.judgements
    if vote.quality is None or vote.safe is None:
        raise ValueError(f"{vote.candidate_id} is unscored")
    return [Judgement(vote.evaluator, vote.quality, vote.safe)]


def _all_of(
    member: Evaluator,
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    advance: Callable[[int], None],
) -> list[Assessment]:
    """One judge's assessments in the order of the candidates."""
    if isinstance(member, BulkEvaluator):
        return member.assess_all(prompts, candidates, advance)
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.prompt_id, []).append(candidate)
    made: dict[str, Assessment] = {}
    for prompt in prompts:
        if group := groups.get(prompt.id):
            made |= {each.candidate_id: each for each in member.assess(prompt, group)}
            advance(len(group))
    return [made[candidate.id] for candidate in candidates]
