"""Candidates that share a prompt as one prefix tree: every common token is computed once.

K judged candidates hang on one prompt. Expanded into pairs the prompt is computed up to K(K-1)
times; as a tree it is computed once, with a mask that lets a token see its own ancestors only and
with positions that restart at each fork. Log-probabilities and gradients are those of the expanded
rows (dropout must be off). Longest common *token* prefixes are found, not assumed: a shared system
prompt, turns that fork late and replies that begin alike are all shared.

A micro-batch is one tree, so that a system prompt is computed once for all its prompts.

Pure functions over token ids, and `add_tree_forward`, which lets a causal language model read such
a batch. Not here: losses (`rlaif.preference`), training (`rlaif.tree_dpo`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from reward.token_scores import Scored, score_tokens
from reward.tree_attention import masks_for
from reward.tree_flex import KERNELS, kernel_for

# Families for which the tests hold the tree against plain rows.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2")


@dataclass(frozen=True)
class Tree:
    """Sequences as the nodes of their prefix tree, in depth-first order.

    Node j is an ancestor of node i, or i itself, exactly where `j <= i <= ends[j]`.

    Attributes:
        tokens: token id of each node.
        positions: depth of each node: the token's position in every sequence through it.
        ends: the last node of each node's subtree.
        paths: of each sequence, the nodes of its tokens.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]


def build_tree(sequences: Sequence[Sequence[int]]) -> Tree:
    """The prefix tree of token sequences; `paths` keeps their order.

    Several roots make a forest: sequences without a common beginning do not see each other.

    Example:
        >>> tree = build_tree([[1, 2, 3], [1, 2, 4, 5]])
        >>> tree.tokens, tree.positions, tree.ends
        ([1, 2, 3, 4, 5], [0, 1, 2, 2, 3], [4, 4, 2, 4, 4])
        >>> tree.paths
        [[0, 1, 2], [0, 1, 3, 4]]

    Raises:
        ValueError: a sequence is empty.
    """
    if not all(sequences):
        raise ValueError("an empty sequence has no place in a tree")
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    paths: list[list[int]] = [[] for _ in sequences]
    before: list[int] = []
    open_nodes: list[int] = []
    # In lexicographic order, what follows a fork is what shares most with the sequence before.
    for number in sorted(range(len(sequences)), key=lambda n: list(sequences[n])):
        ids = list(sequences[number])
        shared = _common(before, ids)
        for node in open_nodes[shared:]:
            ends[node] = len(tokens) - 1
        first = len(tokens)
        tokens += ids[shared:]
        positions += range(shared, len(ids))
        ends += [0] * (len(ids) - shared)
        open_nodes = open_nodes[:shared] + list(range(first, len(tokens)))
        paths[number] = list(open_nodes)
        before = ids
    for node in open_nodes:
        ends[node] = len(tokens) - 1
    return Tree(tokens, positions, ends, paths)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class TreeBatch(NamedTuple):
    """Trees of several prompts, a row each, and where the candidates' tokens are.

    Shapes: B rows of T nodes; M scored tokens, candidate by candidate.

    Attributes:
        input_ids: (B, T) token ids.
        position_ids: (B, T) depths.
        ends: (B, T) last node of each subtree; padding sees itself alone.
        where: (M) index into the B * T nodes of the token *before* each scored token.
        targets: (M) scored token ids.
        lengths: (C) scored tokens of each candidate; they add up to M.
        nodes: () number of nodes without padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    ends: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    nodes: torch.Tensor


def collate(
    trees: Sequence[Tree], starts: Sequence[Sequence[int]], pad_id: int, multiple: int = 1
) -> TreeBatch:
    """Pad trees to one width.

    Args:
        trees: one a row.
        starts: of each sequence of each tree, the first token that is scored; at least 1.
        pad_id: token of the padding.
        multiple: the width is rounded up to a multiple of this.
    """
    width = max(len(tree.tokens) for tree in trees)
    width += -width % multiple
    ids, positions, ends = [], [], []
    where: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for row, (tree, firsts) in enumerate(zip(trees, starts, strict=True)):
        size = len(tree.tokens)
        ids.append(tree.tokens + [pad_id] * (width - size))
        positions.append(tree.positions + [0] * (width - size))
        ends.append(tree.ends + list(range(size, width)))
        for path, first in zip(tree.paths, firsts, strict=True):
            where += [row * width + node for node in path[first - 1 : -1]]
            targets += [tree.tokens[node] for node in path[first:]]
            lengths.append(len(path) - first)
    as_tensor = functools.partial(torch.tensor, dtype=torch.long)
    nodes = sum(len(tree.tokens) for tree in trees)
    made = (ids, positions, ends, where, targets, lengths, nodes)
    return TreeBatch(*(as_tensor(each) for each in made))


def collate_ends(trees: Sequence[Tree], pad_id: int, multiple: int = 1) -> TreeBatch:
    """As `collate`, with nothing scored: `where` (C) has each sequence's last node."""
    batch = collate(trees, [[len(path) for path in tree.paths] for tree in trees], pad_id, multiple)
    width = batch.input_ids.shape[1]
    last = [row * width + path[-1] for row, tree in enumerate(trees) for path in tree.paths]
    return batch._replace(where=torch.tensor(last))


def reason_against(config: PretrainedConfig, longest: int) -> str | None:
    """Why a model cannot compute a tree exactly; None = it can.

    Args:
        config: of the model, as loaded.
        longest: tokens of the longest sequence.
    """
    if config.model_type not in FAMILIES:
        return f"no test holds the tree of {config.model_type} models against plain rows"
    if config._attn_implementation not in KERNELS:
        return f"attention kernel {config._attn_implementation} takes no mask of our own"
    # Other dropout is in modules, which are switched off; this one is a number that layers read.
    if dropped := getattr(config, "attention_dropout", 0.0):
        return f"attention dropout ({dropped}) draws anew wherever a token is computed"
    window = getattr(config, "sliding_window", None) if _slides(config) else None
    if window is not None and window < longest:
        return f"attention looks back {window} tokens only, and a row has {longest}"
    return None


def _slides(config: PretrainedConfig) -> bool:
    """Whether any layer has a sliding window; Qwen names one that it may not use."""
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)


def add_tree_forward(model: PreTrainedModel, attention: str = "sdpa") -> None:
    """Let `model(..., tree_ends=, tree_where=, tree_targets=)` score a `TreeBatch`.

    Without targets it returns the last hidden states (M, H) at `tree_where`; without ends too, of
    plain rows with their `attention_mask`. It goes through the model's own `forward`, because
    wrappers (PEFT, distributed data parallel, mixed precision) act there. Without any of these
    arguments the model does what it did.

    Args:
        model: as loaded.
        attention: the recipe's `model.attn_implementation`; "auto" = the kernel may be another one
            than the model was loaded with.
    """
    plain = model.forward
    model.set_attn_implementation(kernel_for(model, attention))

    @functools.wraps(plain)
    def forward(
        *args: Any,
        tree_ends: torch.Tensor | None = None,
        tree_where: torch.Tensor | None = None,
        tree_targets: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if tree_where is None:
            return plain(*args, **kwargs)
        # PEFT hands on what its own signature names, empty where nothing was given.
        given = {name: kwargs.get(name) for name in ("input_ids", "position_ids")}
        masks: dict[str, Any] = {"attention_mask": kwargs.get("attention_mask")}
        if tree_ends is not None:
            masks = masks_for(model, tree_ends)
        backbone = getattr(model, model.base_model_prefix)
        states = backbone(**given, **masks, use_cache=False).last_hidden_state
        chosen = states.flatten(0, 1)[tree_where]
        if tree_targets is None:
            return chosen
        return score_tokens(chosen, tree_targets, model.get_output_embeddings())

    model.forward = forward


def score_tree(model: Any, batch: TreeBatch) -> Scored:
    """Score a batch with a model that `add_tree_forward` prepared, or with a wrapper of it."""
    scored: Scored = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        tree_ends=batch.ends,
        tree_where=batch.where,
        tree_targets=batch.targets,
    )
    return scored
