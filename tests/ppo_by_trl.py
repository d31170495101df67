"""One update of TRL 1.12.0's PPO on given replies, in a process of its own.

    python tests/ppo_by_trl.py FOLDER

TRL 1.12.0 has to be first on the path. The folder holds `base`, `case.json` and
`weights.safetensors`; `found.safetensors` and `found.json` are written to it. TRL's own code runs:
its sampling is replaced by the given replies, and what passes through some of its functions is
noted.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Notes(TrainerCallback):
    """What TRL computed in one update."""

    def __init__(self, case: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self.case, self.weights, self.moved = case, weights, False
        self.tensors: dict[str, torch.Tensor] = {}
        self.figures: dict[str, float] = {}
        self.said = {tuple(row["prompt"]): list(row["replies"]) for row in case["rollout"]}
        self.forward, self.whiten = ppo_trainer.forward, ppo_trainer.masked_whiten
        self.get_reward = ppo_trainer.get_reward
        ppo_trainer.batch_generation = self.given_replies
        ppo_trainer.forward = self.moving_forward
        ppo_trainer.masked_whiten = self.noted_whiten
        ppo_trainer.get_reward = self.noted_reward

    def given_replies(self, model, queries, rows, pad_id, how):
        """The replies in place of sampled ones, with logits as sampling has them."""
        replies = []
        for query in queries.tolist():
            replies.append(self.said[tuple(t for t in query if t != pad_id)].pop(0))
        self.tensors["replies"] = torch.tensor(replies)
        both = torch.cat([queries, self.tensors["replies"]], dim=1)
        logits = self.forward(model, both, pad_id).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / (self.case["temperature"] + 1e-7)

    def moving_forward(self, model, *args):
        """Move policy and value function between the rollout and its update."""
        if isinstance(model, ppo_trainer.PolicyAndValueWrapper) and not self.moved:
            self.moved = True
            put(model.policy, model.value_model, self.weights, self.case["update"])
        return self.forward(model, *args)

    def noted_whiten(self, values, mask, shift_mean=True):
        found = self.whiten(values, mask, shift_mean)
        self.tensors["advantages"] = found.clone()  # of two calls the last
        return found

    def noted_reward(self, model, *args):
        found = self.get_reward(model, *args)
        if not isinstance(model, PeftModel):
            self.tensors["scores"] = found[1].detach().clone()
        return found

    def note_gradients(self, trainer: PPOTrainer) -> None:
        def before_step(*_: Any) -> None:
            wrapper = trainer.model
            for role, model in (("policy", wrapper.policy), ("value", wrapper.value_model)):
                for name, weight in model.named_parameters():
                    if weight.grad is not None:
                        self.tensors[f"{role}/{short(name)}"] = weight.grad.clone()

        trainer.optimizer.optimizer.register_step_pre_hook(before_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.figures |= {name: float(value) for name, value in (logs or {}).items()}


def short(name: str) -> str:
    """A weight's name without that of its adapter."""
    return "head" if name.endswith("score.weight") else name.replace(".default.", ".")


@torch.no_grad()
def put(policy, value, weights: dict[str, torch.Tensor], when: str) -> None:
    """Give policy and value function their weights of a time: "old" or "new"."""
    for role, model in (("policy", policy), ("value", value)):
        for name, weight in model.named_parameters():
            if (key := f"{when}/{role}/{short(name)}") in weights:
                weight.copy_(weights[key])


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "weights.safetensors")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")

    def lora() -> LoraConfig:
        return LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules=case["layers"])

    options = {"dtype": torch.float32, "num_labels": 1}
    kind = AutoModelForSequenceClassification
    value = kind.from_pretrained(folder / "base", **options).requires_grad_(False)
    value = get_peft_model(value, lora())
    value.score.weight.requires_grad_(True)
    reward = kind.from_pretrained(folder / "base", **options)
    reward.score.weight.data.normal_(std=0.1)
    notes = Notes(case, weights)
    replies = sum(len(row["replies"]) for row in case["rollout"])
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "out"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            num_sample_generations=0,
            gradient_checkpointing=False,
            per_device_train_batch_size=replies,
            local_rollout_forward_batch_size=replies,
            num_mini_batches=1,
            num_ppo_epochs=1,
            total_episodes=replies,
            response_length=case["reply"],
            stop_token="eos",
            temperature=case["temperature"],
            vf_coef=1.0,
            **case["settings"],
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32),
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(
            [{"input_ids": row["prompt"]} for row in case["rollout"] for _ in row["replies"]]
        ),
        peft_config=lora(),
        callbacks=[notes],
    )
    put(trainer.policy_model, trainer.value_model, weights, "old")
    notes.note_gradients(trainer)
    trainer.train()
    tensors = {name: value.detach().contiguous() for name, value in notes.tensors.items()}
    save_file(tensors, folder / "found.safetensors")
    (folder / "found.json").write_text(json.dumps(notes.figures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
