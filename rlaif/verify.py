"""Does what is exported say what was trained? Logits and greedy replies, before and after.

Each model is loaded, asked and freed in turn by the caller, so that two 8B models need not fit
together; what is kept are its answers. A model that is read from disk at each use is asked in few
passes (`greedy`, `follow`). Not here: loading models (`sft.model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sft.files import CheckFailed

# Largest difference of a logit, in standard deviations of the logits: what rounding the merged
# weights once may do. A forgotten or doubled update is 10 times that and more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
FOLLOWED = 32  # positions of a prompt whose logits are compared in `follow`
MOST_LOST = 0.5  # share of what training changed that rounding may undo


class CausalModel(Protocol):
    """What is asked of a model of transformers or PEFT: callable, with `generate`."""

    device: torch.device

    def __call__(self, **inputs: Any) -> Any:
        """Return an output with `logits`."""
        ...

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Return ids of prompt and reply."""
        ...


@dataclass(frozen=True)
class Answers:
    """What a model says to the prompts of the check.

    Attributes:
        logits: a tensor (positions, vocabulary) in float32 per prompt, on the CPU.
        replies: ids of the greedy reply to each prompt.
    """

    logits: list[torch.Tensor]
    replies: list[list[int]]


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        difference: the largest of a logit, in standard deviations of the logits.
        tolerance: what it may be.
        lost: rms difference over rms change by training: 0 = all kept, 1 = nothing of it.
        same_replies: greedy replies that are equal; n: of how many.
    """

    difference: float
    tolerance: float
    lost: float
    same_replies: int
    n: int

    def sentence(self) -> str:
        """Say it with its figures, for the card."""
        return (
            f"Largest difference of a logit {self.difference:.2g} standard deviations (allowed: "
            f"{self.tolerance:g}); {100 * self.lost:.1f} % of what training changed is lost to "
            f"rounding; {self.same_replies} of {self.n} greedy replies are the same."
        )


@torch.inference_mode()
def ask(model: CausalModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> Answers:
    """Ask a model for its logits over each prompt and its greedy reply.

    Args:
        model: in evaluation mode, on its device.
        prompts: token ids of each, asked one by one, so that no padding is involved.
        max_new_tokens: longest reply; 0 = logits only.
    """
    logits, replies = [], []
    for ids in prompts:
        inputs = torch.tensor([list(ids)], device=model.device)
        mask = torch.ones_like(inputs)
        logits.append(model(input_ids=inputs, attention_mask=mask).logits[0].float().cpu())
        reply: list[int] = []
        if max_new_tokens:
            made = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            reply = made[0, len(ids) :].tolist()
        replies.append(reply)
    return Answers(logits, replies)


def greedy(
    model: CausalModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[list[int]]:
    """Greedy replies in `max_new_tokens` passes for all prompts together.

    An end of text does not end a reply: what follows is compared all the same.
    """
    rows = [list(prompt) for prompt in prompts]
    for _ in range(max_new_tokens):
        for row, logits in zip(rows, _one_pass(model, rows, last=1), strict=True):
            row.append(int(logits[-1].argmax()))
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def follow(
    model: CausalModel, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> Answers:
    """Ask a model in one pass for its logits over the end of each prompt and over the reply.

    Of a prompt only the last `FOLLOWED` positions: all of them would take gigabytes with a large
    vocabulary, and what comes before shows in them. The model's own reply is the likeliest token
    after each position. That is the given reply exactly where greedy decoding gives it: the first
    token that differs shows.

    Args:
        model: in evaluation mode.
        prompts: token ids of each.
        replies: of another model, to each prompt.
    """
    rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    logits = _one_pass(model, rows, last=FOLLOWED + max(map(len, replies)))
    own = [
        each[-len(reply) - 1 : -1].argmax(-1).tolist()
        for each, reply in zip(logits, replies, strict=True)
    ]
    return Answers(logits, own)


@torch.inference_mode()
def _one_pass(
    model: CausalModel, rows: Sequence[Sequence[int]], *, last: int
) -> list[torch.Tensor]:
    """Logits (last positions, vocabulary) in float32 of each row, on the CPU.

    Padding goes to the right, where a causal model does not look from the row's own positions.
    """
    longest, shortest = max(map(len, rows)), min(map(len, rows))
    padded = [[*row, *[0] * (longest - len(row))] for row in rows]
    # Weights that are not in memory have no device to speak of; accelerate moves the inputs itself.
    device = "cpu" if model.device.type == "meta" else model.device
    logits = model(
        input_ids=torch.tensor(padded, device=device), logits_to_keep=last + longest - shortest
    ).logits
    # The padding is cut off at the end, so that it does not matter how many positions were kept.
    ends = [logits.shape[1] - (longest - len(row)) for row in rows]
    return [
        each[max(0, end - last) : end].float().cpu() for each, end in zip(logits, ends, strict=True)
    ]


def verify_reloaded(trained: Answers, reloaded: Answers) -> None:
    """The exported adapter, loaded anew, must say exactly what the trained one said.

    Raises:
        CheckFailed: a logit or a reply differs.
    """
    pairs = zip(trained.logits, reloaded.logits, strict=True)
    if any(not torch.equal(a, b) for a, b in pairs) or trained.replies != reloaded.replies:
        raise CheckFailed(
            "the exported adapter does not say what the trained one said: it is not to be used. "
            "Run the export again: --overwrite true"
        )


def verify_merged(
    adapted: Answers, merged: Answers, untrained: Answers, *, dtype: torch.dtype
) -> Agreement:
    """The merged model's logits must be those of base and adapter, up to rounding.

    Args:
        adapted: answers of base and adapter.
        merged: answers of the merged model.
        untrained: answers of the base alone: what training changed is measured against them.
        dtype: of the merged weights; it sets the tolerance.

    Raises:
        CheckFailed: a logit differs by more than the tolerance, or most of the training is lost.
    """
    ours, theirs, before = (torch.cat(a.logits) for a in (adapted, merged, untrained))
    gap, change = theirs - ours, ours - before
    agreement = Agreement(
        difference=float(gap.abs().max() / ours.std()),
        tolerance=TOLERANCE[dtype],
        lost=float(gap.square().mean().sqrt() / change.square().mean().sqrt().clamp_min(1e-12)),
        same_replies=sum(a == b for a, b in zip(adapted.replies, merged.replies, strict=True)),
        n=len(adapted.replies),
    )
    # "not <=" so that a NaN fails.
    if not (agreement.difference <= agreement.tolerance and agreement.lost <= MOST_LOST):
        raise CheckFailed(
            f"the merged model is not the trained one. {agreement.sentence()} Merge in float32, or "
            "export the adapter alone: --export.merge false"
        )
    return agreement
