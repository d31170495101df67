"""Plain logits of the completions, in place of the head that TRL's trainers give their model.

Off GPUs that head projects every position, and multiplies in float32 on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

# Families whose logits are their head's, neither scaled nor capped, and that tests hold to TRL's.
FAMILIES = ("llama", "mistral", "qwen2", "gpt2")


def scored(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the trainer needs of (M) tokens, and what it logs, by TRL's names.

    Args:
        logits: (M, V) float32.
        targets: (M) token ids.
    """
    log_probs = logits.log_softmax(dim=-1)
    seen = {"log_probs": log_probs.gather(1, targets[:, None])[:, 0]}
    with torch.no_grad():  # what the trainer logs
        seen["entropy"] = -(log_probs.exp() * log_probs).sum(dim=-1)
        seen["mean_logits"] = logits.mean(dim=-1)
        seen["is_top1"] = logits.argmax(dim=-1) == targets
    return seen


def plain_head(model: PreTrainedModel) -> None:
    """Let a trainer's model project the tokens that have a label, by its own head, and no others.

    Args:
        model: of a trainer of TRL; its family is one of `FAMILIES`.
    """
    plain = model.forward

    def forward(
        *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> FusedCausalLMOutput:
        if not fused_lm_head:
            return plain(*args, labels=labels, **kwargs)
        backbone = getattr(model, model.base_model_prefix)
        states = backbone(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        targets = labels[:, 1:][mask]
        seen = scored(model.get_output_embeddings()(states[mask]).float(), targets)
        padded = {
            name: value.new_zeros(mask.shape).masked_scatter(mask, value)
            for name, value in seen.items()
        }
        return FusedCausalLMOutput(label_mask=mask, **padded)

    model.forward = forward
