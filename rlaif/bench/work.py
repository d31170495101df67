"""What the training benchmark asks of a trainer: which work, of which size, with what.

Not here: the conversations (`rlaif.bench.material`), models and trainers
(`rlaif.bench.contestants`, `rlaif.bench.trl`), timing (`rlaif.bench.run`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward.pairs import Pair
from sft.data import Demonstration

RANK = 16  # of the adapters
PACK = 512  # tokens of a packed row
EVERYTHING = 2**20  # tokens that no update has
Opponent = Literal["B0", "B1", "B2"]
Name = Literal["ours", "B0", "B1", "B2"]
OURS: Literal["ours"] = "ours"


@dataclass(frozen=True)
class Size:
    """A Llama with random weights, and how much of the work one update takes.

    Attributes:
        layers, hidden, heads, kv_heads, intermediate, vocabulary: as in `LlamaConfig`.
        prompts: of one update, times what the work says.
        micro_prompts: prompts that our reward trainer takes at once.
        tree_tokens: tokens that our DPO takes at once.
        micro_rows: rows that tuned TRL takes at once, a pair is two; 0 = as the work says.
        gradient_checkpointing: of the tuned trainers and ours.
        gate_layers: layers of the model on which the equality gate runs, in float32.
        long_prompt: words that the search for the longest prompt starts from.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    prompts: int
    micro_prompts: int
    tree_tokens: int
    micro_rows: int
    gradient_checkpointing: bool
    gate_layers: int
    long_prompt: int


SIZES = {
    "tiny": Size(2, 64, 4, 2, 128, 512, 2, 2, 1024, 0, False, 2, 256),
    "small": Size(6, 256, 8, 4, 704, 8192, 2, 2, 1024, 0, False, 6, 1024),
    "medium": Size(12, 512, 8, 4, 1408, 8192, 2, 2, 1024, 0, False, 6, 1024),
    "llama3-8b": Size(32, 4096, 32, 8, 14336, 128256, 4, 4, 3072, 12, True, 2, 2048),
}


@dataclass(frozen=True)
class Work:
    """One kind of work, the same for all who do it.

    Attributes:
        name: as in the table.
        stage: which trainer it is for.
        ratio: prompt tokens / reply tokens; None = the lengths of a file.
        candidates: replies of each prompt (K).
        prompts: an update has so many times the prompts of the size.
        pairing: the best against the rest, or every pair.
        system: words of the system prompt that all prompts share; 0 = none.
        rows: rows of tokens with which tuned TRL was fastest among 4, 8 and 12, on two cores.
        probe: memory is measured, not time: one prompt, or one of its pairs, at once.
    """

    name: str
    stage: Literal["dpo", "reward", "sft"]
    ratio: float | None
    candidates: int = 2
    prompts: int = 1
    pairing: Literal["best", "all"] = "all"
    system: int = 200
    rows: int = 4
    probe: bool = False

    @property
    def unit(self) -> str:
        """What the useful work is counted in."""
        return "demonstrations" if self.stage == "sft" else "pairs"

    @property
    def lengths(self) -> str:
        """The ratio of the lengths, in words."""
        return "counsel-chat" if self.ratio is None else f"{self.ratio:g}"

    @property
    def key(self) -> str:
        """A name that no other work has."""
        return f"{self.name}@{self.lengths}"


WORKS = (
    Work("dpo-pair", "dpo", 3.5, prompts=2),
    Work("dpo-k4-best", "dpo", 3.5, 4, pairing="best", rows=8),
    Work("dpo-k4-all", "dpo", 3.5, 4, rows=8),
    Work("rm-k4-all", "reward", 3.5, 4, rows=8),
    # A prompt this short has no system prompt: nothing but it is shared.
    Work("dpo-pair-short", "dpo", 0.25, prompts=2, system=0),
    Work("sft-packed", "sft", 0.5, 1, prompts=16, system=0),
    Work("max-prompt", "dpo", 32.0, 4, system=0, probe=True),
)
# Lengths beside the table of targets.
OTHER_LENGTHS = (Work("dpo-pair", "dpo", 1.0, prompts=2), Work("dpo-k4-all", "dpo", None, 4))


def opponents(work: Work, device: str) -> list[Opponent]:
    """Whom the work is measured against.

    On a GPU TRL's head projects completions only, so that there is nothing to replace, nor is there
    in a reward model. The search for the longest prompt is long: it has one opponent.
    """
    if device == "cuda":
        return ["B1"] if work.probe else ["B0", "B1"]
    if work.probe:
        return ["B2"]
    return ["B0", "B1"] if work.stage == "reward" else ["B0", "B1", "B2"]


@dataclass(frozen=True)
class Material:
    """What one update is made of; `system` is "" where there is none."""

    system: str
    pairs: list[Pair]
    demonstrations: list[Demonstration]

    @property
    def amount(self) -> int:
        """Useful work of one update, in the work's unit."""
        return len(self.pairs) or len(self.demonstrations)

    @property
    def prompts(self) -> int:
        """Prompts of one update."""
        asked = [each.prompt_id for each in self.pairs]
        return len({*asked, *(each.prompt_id for each in self.demonstrations)})


@dataclass(frozen=True)
class Job:
    """What a contestant has to do, and with what.

    Attributes:
        folder: of the model and its tokenizer.
        scratch: for what trainers write.
        dtype: "bfloat16" or "float32", of computing; TRL as it comes keeps weights in float32.
        device: "cpu" or "cuda".
        load_in_4bit: quantise the base.
        steps: optimiser updates, each over the whole material.
        whole: take an update in one micro-batch.
    """

    work: Work
    size: Size
    material: Material
    folder: Path
    scratch: Path
    dtype: str
    device: str
    load_in_4bit: bool
    steps: int
    whole: bool = False

    @property
    def micro_prompts(self) -> int:
        """Prompts that our reward trainer takes at once, and our DPO where memory is measured."""
        return 1 if self.work.probe else self.size.micro_prompts

    @property
    def micro_rows(self) -> int:
        """Rows that tuned TRL takes at once."""
        return 2 if self.work.probe else self.size.micro_rows or self.work.rows

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the tuned trainers and ours spend time to save memory."""
        return self.work.probe or self.size.gradient_checkpointing

    @property
    def tree_tokens(self) -> int:
        """Tokens that our DPO takes at once; 0 = a prompt."""
        if self.work.probe:
            return 0
        return EVERYTHING if self.whole else self.size.tree_tokens

    @property
    def attention(self) -> str:
        """Kernel of tuned TRL and our SFT: on a CPU plain products, as SDPA's backward is slower.

        Where memory is measured everybody has SDPA, which needs less; our trees always have.
        """
        return "eager" if self.device == "cpu" and not self.work.probe else "sdpa"


@dataclass(frozen=True)
class Ready:
    """What a run works with.

    Attributes:
        device: in words.
        threads: of PyTorch.
        dtype: what it computes in; `reason` says why.
    """

    device: str
    threads: int
    dtype: str
    reason: str
