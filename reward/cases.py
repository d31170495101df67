"""Prompts with replies that a judge sees together, and many of them asked at once.

Not here: what is changed from one case to the next, and what the answers come to (`reward.probes`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from reward.evaluator import Assessment, BulkEvaluator, Evaluator
from reward.labels import Labels
from sft.candidates import Candidate
from sft.data import Prompt

COMPANY = 4  # replies in one call, at most

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Case:
    """A prompt with replies to it that are judged in one call."""

    prompt: Prompt
    replies: tuple[Candidate, ...]


def labelled(labels: Labels) -> list[Case]:
    """Return every labelled prompt with all its replies."""
    return [
        Case(labels.prompts[prompt], tuple(replies))
        for prompt, replies in labels.of_prompt().items()
    ]


def draw_cases(labels: Labels, scored: Container[str], n: int, seed: int = 0) -> list[Case]:
    """Draw prompts with scored replies; one with a single reply gets the next prompt's beside it.

    Args:
        labels: Prompts and replies.
        scored: Ids of the replies with a score.
        n: Prompts to draw, at most.
        seed: Of the draw.
    """
    groups = {
        prompt: [r for r in replies if r.id in scored][:COMPANY]
        for prompt, replies in labels.of_prompt().items()
    }
    names = [prompt for prompt, replies in groups.items() if replies]
    drawn = random.Random(seed).sample(names, min(n, len(names)))
    made = []
    for prompt, following in zip(drawn, drawn[1:] + drawn[:1], strict=True):
        replies = groups[prompt]
        if len(replies) == 1 and following != prompt:
            other = groups[following][0]
            replies = [*replies, replace(other, id=f"{other.id}+", prompt_id=prompt)]
        made.append(Case(labels.prompts[prompt], tuple(replies)))
    return made


def assess_each(evaluator: Evaluator, cases: Sequence[Case], tell: Tell) -> list[list[Assessment]]:
    """Have every case judged by itself: all at once where the evaluator can, else one by one.

    Args:
        evaluator: Who judges. One that asks a service gives equal cases the same answer, unless it
            asks afresh.
        cases: Ids may occur in several.
        tell: Takes the number of verdicts that came in, which may be 0.

    Returns:
        The assessments of each case's replies, in their order.

    Raises:
        EvaluatorStopped: The evaluator's service refuses to go on.
    """
    if isinstance(evaluator, BulkEvaluator):
        prompts, replies = told_apart(cases)
        made = iter(evaluator.assess_all(prompts, replies, tell))
        return [
            [replace(next(made), candidate_id=r.id, prompt_id=r.prompt_id) for r in case.replies]
            for case in cases
        ]
    found = []
    for case in cases:
        found.append(evaluator.assess(case.prompt, case.replies))
        tell(len(case.replies))
    return found


def told_apart(cases: Sequence[Case]) -> tuple[list[Prompt], list[Candidate]]:
    """Return the prompts and replies of all cases, under ids that occur once."""
    prompts = [replace(case.prompt, id=f"{n}/{case.prompt.id}") for n, case in enumerate(cases)]
    replies = [
        replace(reply, id=f"{n}/{reply.id}", prompt_id=prompts[n].id)
        for n, case in enumerate(cases)
        for reply in case.replies
    ]
    return prompts, replies
