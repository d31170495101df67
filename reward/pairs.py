"""From assessments to preference pairs, and a reason for every candidate that is in none.

Laws: an unscored candidate is in no pair; a candidate that failed the safety flow is never
`chosen`; where one reply is safe and the other is not, safety decides whatever the quality;
swapping the verdict swaps the pair; ties are dropped and counted.

Here is how the rules follow each other; they are in `reward.pairing` (one pair),
`reward.confidence`, `reward.pair_choice` and `reward.pair_report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from reward.confidence import RepeatNoise, repeat_noise, require_known, trust
from reward.evaluator import Assessment
from reward.pair_choice import comparisons, over_longer_share, rank, take, without_near_duplicates
from reward.pair_report import Pairing, balance_line, median_answers, pairs_line, tie_line
from reward.pairing import Judged, Pair, compare
from sft.candidates import Candidate
from sft.data import Prompt
from sft.pair_settings import PairSection

__all__ = [
    "Judged",
    "Pair",
    "Pairing",
    "balance_line",
    "compare",
    "make_pairs",
    "pairs_line",
    "tie_line",
    "trust",
]


@dataclass
class _Group:
    """A prompt with its ranked own candidates and the pairs that they make."""

    prompt: Prompt
    own: list[Judged]
    pairs: list[Pair] = field(default_factory=list)
    misfit: list[Pair] = field(default_factory=list)


def make_pairs(
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    assessments: Sequence[Assessment],
    section: PairSection,
) -> Pairing:
    """Pair the candidates of each prompt by the recipe's strategy, and one misfit with the best.

    A borrowed reply that the safety flow fails for this prompt makes one more pair, beyond
    `max_pairs_per_prompt`: more of them are told apart too easily, and crowd out what a policy has
    still to learn from its own replies.

    Strategies: "best_worst" one pair a prompt; "best_rest" the best against each other reply;
    "best_rest_safe_unsafe" also every other safe reply against each unsafe one, because the flow's
    verdicts are firmer than the grades between middling replies; "all" every comparison. The best
    is a safe reply of the highest quality, never a borrowed one. A prompt's pairs are taken by
    falling margin, up to `max_pairs_per_prompt`.

    In this order: what has no score or was cut off leaves, near duplicates leave, the strategy
    compares, each prompt takes its pairs, and last the much longer ones over `max_longer_share` of
    all prompts' pairs leave.

    Raises:
        UserError: the margin is "auto" and there are not enough repeats, or they never differ.
    """
    noise = repeat_noise(assessments)
    if section.margin == "auto":
        require_known(noise)
    result = Pairing(noise=noise, asked=median_answers(assessments), margin=section.margin)
    by_prompt = _usable(candidates, assessments, section, result)
    groups = [
        _pair_one(prompt, by_prompt.get(prompt.id, []), section, noise, result)
        for prompt in prompts
    ]
    every = [pair for group in groups for pair in group.pairs]
    dropped = over_longer_share(every, section.max_longer_share)
    gone = {(pair.chosen_id, pair.rejected_id) for pair in dropped}
    result.comparisons["kept"] += len(every) - len(dropped)
    if dropped:
        result.comparisons["over max_longer_share"] += len(dropped)
    for group in groups:
        left = [p for p in group.pairs if (p.chosen_id, p.rejected_id) not in gone]
        result.add(group.prompt, [*left, *group.misfit], _why_none(group))
    return result


def _usable(
    candidates: Sequence[Candidate],
    assessments: Sequence[Assessment],
    section: PairSection,
    result: Pairing,
) -> dict[str, list[Judged]]:
    """The candidates that can stand in pairs, by prompt; the others are counted by reason."""
    texts = {candidate.id: candidate for candidate in candidates}
    by_prompt: dict[str, list[Judged]] = {}
    for assessment in assessments:
        judged = Judged(texts[assessment.candidate_id], assessment)
        if assessment.unscored is not None:
            result.candidates[f"unscored: {assessment.unscored}"] += 1
        elif judged.candidate.stop == "length":
            # A reply that was cut off says nothing about what the model meant to say, and teaches
            # not to stop.
            result.candidates["cut off at max_new_tokens"] += 1
        else:
            by_prompt.setdefault(assessment.prompt_id, []).append(judged)
    for prompt_id, judged_ones in by_prompt.items():
        stay, near = without_near_duplicates(judged_ones, section.near_duplicate)
        by_prompt[prompt_id] = stay
        if near:
            result.candidates["near duplicate of another reply"] += len(near)
        for judged in stay:
            borrowed = judged.candidate.borrowed
            result.candidates["borrowed" if borrowed else "paired with others"] += 1
    return by_prompt


def _pair_one(
    prompt: Prompt,
    judged: Sequence[Judged],
    section: PairSection,
    noise: RepeatNoise,
    result: Pairing,
) -> _Group:
    """The pairs of a prompt; what was compared and is in none is counted."""
    ranked = sorted(judged, key=rank)
    group = _Group(prompt, [j for j in ranked if not j.candidate.borrowed])
    misfits = [j for j in ranked if j.candidate.borrowed and not j.assessment.safe]
    compared = [compare(a, b, prompt, section, noise) for a, b in comparisons(group.own, section)]
    found = _pairs_of(compared, result.comparisons)
    group.pairs = take(found, section)
    if len(found) > len(group.pairs):
        over = "max_pairs_per_prompt" if section.strategy != "best_worst" else "one pair a prompt"
        result.comparisons[f"over {over}"] += len(found) - len(group.pairs)
    if group.own and group.own[0].assessment.safe and misfits:
        # The misfit of the lowest quality: the last of the ranking.
        met = compare(group.own[0], misfits[-1], prompt, section, noise)
        group.misfit = _pairs_of([met], result.with_borrowed)
        result.with_borrowed["kept"] += len(group.misfit)
    return group


def _pairs_of(compared: Sequence[Pair | str], reasons: Counter[str]) -> list[Pair]:
    """The pairs among outcomes of comparisons; the reasons of the others are counted."""
    reasons.update(each for each in compared if isinstance(each, str))
    return [each for each in compared if isinstance(each, Pair)]


def _why_none(group: _Group) -> str:
    """Why a prompt has no pairs, if it has none."""
    if not any(judged.assessment.safe for judged in group.own):
        return "without a safe candidate"
    if len(group.own) < 2:
        return "without two usable candidates"
    return "with much longer chosen replies only" if group.pairs else "without a pair that counts"
