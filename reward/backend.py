"""Where a recipe's candidates come from: this process, or a server that serves the policy.

Not here: how either samples (`sft.generate`, `reward.replies`), which load slowly and only if used.
"""

from __future__ import annotations

from pathlib import Path

from reward.risk import message_risk
from reward.shards import gather, of_shard
from sft import material
from sft.candidates import Generated, Sampling
from sft.data import Prompt
from sft.files import UserError
from sft.recipe import Recipe


def training_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts that get candidates: all for training, or the shard's share of them.

    Raises:
        UserError: none are left.
    """
    prompts = material.training_prompts(recipe, lambda messages: message_risk(messages).risk)
    prompts = of_shard(prompts, recipe.generate.shard)
    if not prompts:
        raise UserError(f"{recipe.prompts}: no training prompts are left after holding some out")
    return prompts


def sample(
    recipe: Recipe,
    adapter: Path | None,
    prompts: list[Prompt],
    sampling: Sampling,
    folder: Path,
) -> Generated:
    """Sample the policy by the recipe's backend.

    Args:
        recipe: its `generate` and `model` sections.
        adapter: the policy's adapter; None = the base.
        prompts: what is answered.
        sampling: how many replies, and how they are drawn.
        folder: the stage's; a server's replies are kept in its ledger.
    """
    if recipe.generate.backend == "openai":
        from reward.replies import ServedPolicy

        gather(folder, [])
        return ServedPolicy(recipe, adapter).replies(prompts, sampling, folder)
    from sft.generate import replies_of

    return replies_of(recipe, {"policy": adapter}, prompts, sampling)["policy"]


def plan_line(recipe: Recipe, adapter: Path | None, sampling: Sampling, folder: Path) -> str:
    """What sampling from a server would ask and cost, in one line; nobody is called."""
    from reward.replies import ServedPolicy

    prompts = training_prompts(recipe)
    return ServedPolicy(recipe, adapter).forecast(prompts, sampling, folder).line()
