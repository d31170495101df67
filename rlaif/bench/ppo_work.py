"""What the PPO benchmark asks of a contestant, and what it hears of it; light to import.

Not here: the contestants (`rlaif.bench.ppo_ours`, `rlaif.bench.ppo_trl`), who is asked when
(`rlaif.bench.ppo_run`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rlaif.bench.work import SIZES, Size
from sft.files import UserError, write_json

GO = "go"
OPPONENT = "trl-1.12.0"
FULL_VALUE = f"{OPPONENT}-full-value"
HEAD, ADAPTER = "head", "adapter"  # ours, by `ppo.value`
WHO = (HEAD, ADAPTER, OPPONENT, FULL_VALUE)
PARTS = ("generate", "score", "update")
SYSTEM = 200  # words of the system prompt that all prompts share
PEAKS = Path("/proc/self/clear_refs")  # by which the peak memory of a process is measured
RATIO = 3.5  # of mean prompt to reply, as in the training benchmark

# Of a job's settings, the least that means something.
LEAST = {"prompts": 1, "k": 1, "reply": 2, "epochs": 1, "mini_batches": 1, "rows": 1}


@dataclass(frozen=True)
class PpoJob:
    """One course of PPO, the same for all.

    Attributes:
        size: of the model, one of `rlaif.bench.work.SIZES`.
        folder: with the base, our reward adapter and the prompts.
        prompts: of a rollout.
        k: replies to each prompt.
        reply: tokens of each reply; none ends before.
        epochs: passes over a rollout.
        mini_batches: updates in a pass.
        rows: replies generated at once.
        iterations: rollouts, with those that do not count.
        dtype: "bfloat16" or "float32".
    """

    size: str
    folder: str
    prompts: int
    k: int
    reply: int
    epochs: int
    mini_batches: int
    rows: int
    iterations: int
    dtype: Literal["bfloat16", "float32"]

    @property
    def base(self) -> Path:
        """Folder of the model and its tokenizer."""
        return Path(self.folder) / "base"

    @property
    def reward(self) -> Path:
        """Folder of our reward model's adapter."""
        return Path(self.folder) / "reward"

    @property
    def shape(self) -> Size:
        """Of the model."""
        return SIZES[self.size]

    @property
    def replies(self) -> int:
        """Of a rollout."""
        return self.prompts * self.k

    def prompt_ids(self) -> list[list[int]]:
        """The prompts that `rlaif.bench.ppo_ours` rendered for everybody."""
        found: list[list[int]] = json.loads((Path(self.folder) / "prompts.json").read_text("utf-8"))
        return found

    def check(self, who: Sequence[str]) -> None:
        """See that the contestants can do it.

        Raises:
            UserError: with all mistakes.
        """
        given = asdict(self)
        wrong = [f"--{n} {given[n]}: give at least {m}" for n, m in LEAST.items() if given[n] < m]
        if not wrong and self.prompts % self.mini_batches:
            wrong.append(f"--mini_batches {self.mini_batches}: has to divide --prompts")
        if not wrong and self.rows % self.k:
            wrong.append(f"--rows {self.rows}: has to be a multiple of --k {self.k}")
        wrong += [f"--who {name}: give some of {','.join(WHO)}" for name in who if name not in WHO]
        if len({name.startswith(OPPONENT) for name in who}) != 2:
            wrong.append("--who: name one of ours and one of TRL's")
        if wrong:
            raise UserError("\n".join(wrong))

    def write(self, path: Path) -> Path:
        """As a file that a contestant reads."""
        write_json(path, asdict(self))
        return path

    @classmethod
    def read(cls, path: Path) -> PpoJob:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Held:
    """Bytes that a contestant's process held.

    Attributes:
        weights: all parameters on which it works, frozen ones too.
        optimizer: its state after updates; gradients are in neither.
        libraries: resident before a model was loaded.
        peak: most that was resident from the first iteration on, libraries among it.
    """

    weights: int
    optimizer: int
    libraries: int
    peak: int

    @property
    def model(self) -> int:
        """Weights and the optimiser's state."""
        return self.weights + self.optimizer


@dataclass(frozen=True)
class Course:
    """What one contestant took; seconds of each counted iteration, by part."""

    who: str
    seconds: list[dict[str, float]]
    held: Held

    def of(self, part: str) -> list[float]:
        """Seconds of a part in each iteration, or of all parts ("iteration")."""
        if part == "iteration":
            return [sum(each.values()) for each in self.seconds]
        return [each[part] for each in self.seconds]

    @classmethod
    def made(cls, who: str, seconds: list[dict[str, float]], held: Mapping[str, Any]) -> Course:
        """From what a process said."""
        return cls(who, seconds, Held(**held))
