"""Who takes part in the training benchmark: a model for all, this project's trainers and TRL's.

One update is the whole material, so that the order inside an update changes no result. Not here:
what is trained on (`rlaif.bench.material`), TRL's settings (`rlaif.bench.trl`), timing
(`rlaif.bench.run`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from reward.model import RewardModel
from reward.train import RewardTrainer, reward_options
from rlaif import dpo
from rlaif.bench import trl as bench_trl
from rlaif.bench.material import words
from rlaif.bench.work import OURS, PACK, RANK, Job, Name, Opponent, Size
from rlaif.groups import to_groups
from rlaif.pair_rows import encode_pairs
from sft import base, train
from sft import model as project_models
from sft.chat import LLAMA3, Chat, system_prompt
from sft.config import DpoSection, FinetuneSection, ModelSection, RewardSection
from sft.recipe import Recipe
from sft.runs import Stage

POSITIONS = 16384
START = 0.02  # standard deviation of what learns
SCORES = ("heads.reward.weight", "base_model.model.score.modules_to_save.default.weight")
NOTHING = 1e-9  # weight of the safety head's loss: it is computed, and TRL's trainer has none


def write_model(size: Size, folder: Path, layers: int) -> None:
    """Write a Llama with random weights in bfloat16, and a tokenizer of one token a word.

    Args:
        size: its shape, but for the layers.
        folder: where to.
        layers: how many.
    """
    torch.manual_seed(0)
    known = [*base.SPECIAL, "<unk>", "system", "user", "assistant", *words(size.vocabulary)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=base.BOS,
        eos_token=base.EOT,
        pad_token=base.PAD,
        additional_special_tokens=base.SPECIAL,
        chat_template=LLAMA3,
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM._from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def learned(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained, by names that all contestants share.

    Left out is our reward model's safety head, which TRL's has not.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and not name.startswith("heads.safety"):
            found["score" if name in SCORES else name.removeprefix("language.")] = weight
    return found


def same_start(model: torch.nn.Module) -> None:
    """Give what learns the weights that all contestants start from, away from the reference."""
    with torch.no_grad():
        for name, weight in learned(model).items():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weight.copy_(START * torch.randn(weight.shape, generator=draw))


def our_dpo(job: Job) -> Trainer:
    """This project's DPO by a recipe, as `rlaif.dpo.train_dpo` makes it: on trees."""
    recipe, precision, chat = _by_recipe(job)
    model = _new_policy(recipe, precision)
    before = train.snapshot(model)
    rows = encode_pairs(chat, job.material.pairs).rows
    options = dpo.dpo_options(recipe, precision, job.scratch)
    # The stage says nothing.
    stage = Stage(job.scratch / "dpo", {}, reused=False, is_main=False)
    parts = dpo.Job(recipe, model, rows, options, precision, chat.tokenizer, stage)
    trainer = dpo.make_trainer(parts, start=None)
    project_models.keep_float32(model, before)
    return trainer


def our_sft(job: Job) -> Trainer:
    """This project's SFT by a recipe, as `sft.train.finetune` makes it: packed."""
    recipe, precision, chat = _by_recipe(job)
    model = _new_policy(recipe, precision)
    before = train.snapshot(model)
    rows = train.encode(chat, job.material.demonstrations).rows
    options = train.trainer_options(recipe.finetune, recipe, precision, job.scratch)
    trainer = train.make_trainer(model, rows, options, chat.tokenizer)
    project_models.keep_float32(model, before)
    return trainer


def our_reward(job: Job) -> Trainer:
    """This project's reward model by a recipe, as `reward.train.fit_reward` makes it: on trees."""
    recipe, precision, chat = _by_recipe(job)
    model = RewardModel(_new_policy(recipe, precision), chat, precision, attention="auto")
    if job.gradient_checkpointing:
        model.language.gradient_checkpointing_enable({"use_reentrant": False})
    options = reward_options(recipe, precision, job.scratch)
    return RewardTrainer(
        recipe.reward,
        model,
        args=TrainingArguments(**options),
        train_dataset=Dataset.from_list(_comparisons(job, chat)),
    )


def _comparisons(job: Job, chat: Chat) -> list[dict[str, Any]]:
    """Rows of the reward trainer: a prompt, its replies, and which is better; all are certain."""
    rows = []
    for group in to_groups(encode_pairs(chat, job.material.pairs).rows):
        n_pairs, n_replies = len(group["pairs"]), len(group["sequences"])
        rows.append(
            {
                "sequences": group["sequences"],
                "pairs": group["pairs"],
                "confidence": [1.0] * n_pairs,
                "margin": group["margins"],
                "safe": [1.0] * n_replies,
                "judged": [1.0] * n_replies,
                "length": group["length"],
            }
        )
    return rows


def _new_policy(recipe: Recipe, precision: project_models.Precision) -> PeftModel:
    """A fresh adapter on the base."""
    base_model = project_models.load_base(recipe.model, precision)
    return project_models.new_adapter(base_model, recipe.model)


def _by_recipe(job: Job) -> tuple[Recipe, project_models.Precision, Chat]:
    """The job as a recipe, and what every stage makes of one first."""
    system = job.scratch / "system.txt"
    system.write_text(job.material.system, encoding="utf-8")
    on_cpu = job.device == "cpu"
    prompts = len({pair.prompt_id for pair in job.material.pairs})
    demonstrations = len(job.material.demonstrations)
    prompts_at_once = prompts if job.whole else job.micro_prompts
    recipe = Recipe(
        run="bench",
        use_cpu=on_cpu,
        model=ModelSection.model_validate(
            {
                "name_or_path": str(job.folder),
                "dtype": job.dtype,
                "load_in_4bit": job.load_in_4bit,
                "attn_implementation": job.attention if job.work.stage == "sft" else "auto",
                "system_prompt": str(system) if job.material.system else "none",
                "max_length": POSITIONS,
                "lora_r": RANK,
                "lora_alpha": RANK,
            }
        ),
        dpo=DpoSection(
            **_training(job, prompts, 1 if job.tree_tokens else prompts_at_once),
            tree_tokens=job.tree_tokens,
            trainer={"train_sampling_strategy": "group_by_length"},
        ),
        reward=RewardSection(
            **_training(job, prompts, prompts_at_once),
            safety_weight=NOTHING,
            trainer={"train_sampling_strategy": "group_by_length"},
        ),
        finetune=FinetuneSection(
            **_training(job, demonstrations, demonstrations if job.whole else 1),
            trainer={"packing": True, "max_length": PACK},
        ),
    )
    precision = project_models.choose_precision(job.dtype, use_cpu=on_cpu)
    tokenizer = project_models.load_tokenizer(recipe.model)
    chat = Chat(tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length)
    return recipe, precision, chat


def _training(job: Job, rows: int, micro: int) -> dict[str, Any]:
    """Settings that the stages share; an epoch of so many rows is one update."""
    micro = max(1, min(micro, rows))
    return {
        "per_device_train_batch_size": micro,
        # With fewer micro-batches than that (packing), an epoch and its update end early.
        "gradient_accumulation_steps": max(1, -(-rows // micro)),
        "max_steps": job.steps,
        "gradient_checkpointing": job.gradient_checkpointing,
    }


# Where this project's trainer of a stage plugs in: a function of the job that returns a trainer
# ready for `train()`. Its adapter has the names that TRL's has, its rows come in the material's
# order, and an update of it is the whole material.
OURS_BY_STAGE: Mapping[str, Callable[[Job], Trainer]] = {
    "dpo": our_dpo,
    "sft": our_sft,
    "reward": our_reward,
}
TRL_BY_STAGE: Mapping[str, Callable[[Job, Opponent], Trainer]] = {
    "dpo": bench_trl.dpo_trainer,
    "sft": bench_trl.sft_trainer,
    "reward": bench_trl.reward_trainer,
}


def make_trainer(job: Job, who: Name) -> Trainer:
    """The trainer of "ours" or of an opponent."""
    if who == OURS:
        return OURS_BY_STAGE[job.work.stage](job)
    return TRL_BY_STAGE[job.work.stage](job, who)
