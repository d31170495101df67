"""What a reply is worth to PPO: quality and safety by whoever rewards, and one score from both.

Quality and the verdict on safety come apart, from an evaluator online or from the reward model's
two heads; only here do they meet, in one of three ways that the recipe names. A reply without a
verdict has no score: it is left out of the update, and counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from reward.evaluator import Assessment, BulkEvaluator, Evaluator
from rlaif.ppo_math import gated, penalised
from rlaif.rollout import Rollout, Said
from sft.candidates import Candidate
from sft.files import CheckFailed, EvaluatorStopped, UserError, short_hash
from sft.ppo_settings import PpoSection

T = TypeVar("T")
SAFE_FROM = 0.5  # probability of the reward model's safety head


@dataclass(frozen=True)
class Verdicts:
    """Of C replies; where `known` is False the others mean nothing.

    Attributes:
        quality: (C) 0 to 1; of a reward model the probability of being preferred to a mean reply.
        safe: (C) bool.
        known: (C) bool: there is a verdict.
        reasons: why there is none, with how often.
    """

    quality: torch.Tensor
    safe: torch.Tensor
    known: torch.Tensor
    reasons: Mapping[str, int]

    @property
    def unsafe_share(self) -> float:
        """Share of unsafe replies among those with a verdict."""
        return float((~self.safe[self.known]).float().mean()) if self.known.any() else 0.0


def by_model(said: Said) -> Verdicts:
    """Verdicts of the reward model's heads.

    They read a reply's last token; one that was cut off has none that ends it, and its score is
    worth less: `ppo.missing_eos_penalty` is on top of it.
    """
    if said.reward is None or said.p_safe is None:
        raise ValueError("no reward model was asked")
    known = torch.ones_like(said.reward, dtype=torch.bool)
    return Verdicts(said.reward.sigmoid(), said.p_safe >= SAFE_FROM, known, {})


def by_evaluator(evaluator: Evaluator | None, rollout: Rollout, policy: str) -> Verdicts:
    """Verdicts of an evaluator; the main process asks and tells the others.

    Args:
        evaluator: who is asked; only the main process needs one.
        rollout: the replies.
        policy: name of who wrote them, for the ledger.

    Raises:
        EvaluatorStopped: the evaluator refuses to go on; what it answered is in its ledger. On the
            other processes also for whatever else ended it.
        UserError: as the evaluator raises it (a failed check, a full disk), where it is asked.
    """

    def ask(who: Evaluator) -> list[tuple[float | None, bool | None, str | None]]:
        return [(a.quality, a.safe, a.unscored) for a in _assess(who, rollout, policy)]

    rows = told_to_all(None if evaluator is None else partial(ask, evaluator))
    return Verdicts(
        torch.tensor([quality if quality is not None else 0.0 for quality, _, _ in rows]),
        torch.tensor([bool(safe) for _, safe, _ in rows]),
        torch.tensor([reason is None for _, _, reason in rows]),
        Counter(reason for _, _, reason in rows if reason is not None),
    )


def told_to_all(ask: Callable[[], T] | None) -> T:
    """What the main process finds out, on all processes; and so is the error that ends it.

    Args:
        ask: finds it out, anything but a string; None on the other processes.

    Raises:
        UserError: as `ask` raises it, where it is called.
        EvaluatorStopped: on the other processes, with the message of that error.
    """
    box: list[Any] = [None]
    stopped: UserError | None = None
    if ask is not None:
        try:
            box = [ask()]
        except UserError as error:  # of any kind: the others wait to be told
            box, stopped = [str(error)], error
    if PartialState().num_processes > 1:
        broadcast_object_list(box)
    if stopped is not None:
        raise stopped
    if isinstance(box[0], str):
        raise EvaluatorStopped(box[0])
    found: T = box[0]
    return found


def _assess(evaluator: Evaluator, rollout: Rollout, policy: str) -> list[Assessment]:
    candidates, k = candidates_of(rollout, policy), rollout.k
    prompts = [each.prompt for each in rollout.asked]
    if isinstance(evaluator, BulkEvaluator):
        return evaluator.assess_all(prompts, candidates, lambda _: None)
    return [
        assessment
        for i, prompt in enumerate(prompts)
        for assessment in evaluator.assess(prompt, candidates[i * k : (i + 1) * k])
    ]


def candidates_of(rollout: Rollout, policy: str) -> list[Candidate]:
    """The replies of a rollout as candidates, for whoever judges them."""
    made = []
    for i, text in enumerate(rollout.texts):
        prompt, number = rollout.asked[i // rollout.k].prompt.id, i % rollout.k
        made.append(
            Candidate(
                id="c-" + short_hash([policy, prompt, number, text]),
                prompt_id=prompt,
                text=text,
                model=policy,
                temperature=rollout.temperature,
                top_p=1.0,
                seed=number,
                stop="eos" if rollout.replies[i].ended else "length",
            )
        )
    return made


def check_known(verdicts: Verdicts, limit: float) -> None:
    """See that enough replies have a verdict.

    Raises:
        CheckFailed: a larger share than `limit` has none, or all of them.
    """
    missing = int((~verdicts.known).sum())
    if missing > limit * len(verdicts.known) or not verdicts.known.any():
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(verdicts.reasons.items()))
        raise CheckFailed(
            f"{missing} of {len(verdicts.known)} replies have no verdict ({why}), which is more "
            f"than score.max_unscored {limit} allows"
        )


def scores_of(
    section: PpoSection, verdicts: Verdicts, ended: Sequence[bool], multiplier: float
) -> torch.Tensor:
    """(C) one score per reply; of those without a verdict 0, which nobody may read.

    Args:
        section: how safety binds, and what a missing end costs.
        verdicts: quality and safety.
        ended: whether each reply ended by itself.
        multiplier: price of an unsafe reply (lagrangian).
    """
    penalty = section.missing_eos_penalty * (~torch.tensor(list(ended))).float()
    if section.safety == "gate":
        scores = gated(verdicts.quality, verdicts.safe, section.floor, penalty)
    elif section.safety == "lagrangian":
        scores = penalised(verdicts.quality, verdicts.safe, multiplier) - penalty
    else:
        scores = verdicts.quality - penalty
    return torch.where(verdicts.known, scores, 0.0)
