"""K seeded candidates per prompt, sampled from the policy of the day.

Rows are grouped by length into batches; a batch draws its random numbers from the seed and the
batch's own content, so the same prompts give the same candidates with one process or several.
transformers' `generate` draws the tokens. Three things around it save time and change nothing but
rounding: a prompt is read once for all its replies, replies that have ended leave the batch, and a
float32 base speaks with its adapter added in. Not here: judging the replies (`reward.score`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache, PreTrainedModel

from sft import lineage
from sft import model as models
from sft.candidates import Candidate, Generated, Sampling
from sft.chat import Chat, system_prompt
from sft.config import Recipe
from sft.data import Prompt
from sft.files import UserError, short_hash
from sft.runs import Progress

PIECE = 16  # tokens sampled between two looks at which replies have ended


def replies_of(
    recipe: Recipe,
    adapters: Mapping[str, Path | None],
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> dict[str, Generated]:
    """Load the base once and let each of its adapters answer the prompts.

    Args:
        recipe: its `model` section and `use_cpu`.
        adapters: folder of each speaker's adapter by name; None = the base itself.
        prompts: what is answered.
        sampling: how, the same for every speaker.

    Raises:
        UserError: the model cannot be loaded, or no prompt fits its length limit.
    """
    section = recipe.model
    speakers = models.load_speakers(section, adapters, use_cpu=recipe.use_cpu)
    chat = Chat(speakers.tokenizer, system_prompt(section.system_prompt), section.max_length)
    replies: dict[str, Generated] = {}
    for name, adapter in adapters.items():
        label = f"replies of the {name}"
        with (
            Progress(len(prompts), label, unit="prompts") as bar,
            speakers.active(name) as who,
            merged(who),
        ):
            replies[name] = generate(
                who,
                chat,
                prompts,
                sampling,
                model_name=lineage.name_of(adapter),
                advance=bar.advance,
            )
        if not replies[name].candidates:
            raise UserError(
                f"no prompt leaves room for a reply of {sampling.max_new_tokens} tokens: raise "
                f"model.max_length ({section.max_length}), or lower max_new_tokens"
            )
    return replies


def generate(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    model_name: str,
    advance: Callable[[int], None],
) -> Generated:
    """Sample `sampling.k` replies to each prompt.

    Args:
        model: on its device, with the adapter to sample from active.
        chat: renders the prompts.
        prompts: those that leave no room for a reply are reported, not cut.
        sampling: how many replies, and how they are drawn.
        model_name: stored with each candidate, so that a reply can be traced to the adapter that
            wrote it.
        advance: called with the number of prompts finished, for a progress line.
    """
    rendered = [
        (prompt, chat.render(prompt.messages, reserve=sampling.max_new_tokens))
        for prompt in prompts
    ]
    too_long = [prompt.id for prompt, row in rendered if row is None]
    rows = sorted(
        ((p.id, r.prompt_ids) for p, r in rendered if r), key=lambda row: (len(row[1]), row[0])
    )
    per_batch = max(1, sampling.batch_size // sampling.k)
    batches = [rows[i : i + per_batch] for i in range(0, len(rows), per_batch)]
    state = PartialState()
    made: list[Candidate] = []
    was_training = model.training
    model.eval()
    # Longest first: the batch that may not fit in memory fails at once, not at the end.
    for batch in batches[::-1][state.process_index :: state.num_processes]:
        made += _sample_batch(model, chat, batch, sampling, model_name)
        advance(len(batch) * state.num_processes)
    model.train(was_training)
    everything: list[Candidate] = gather_object(made) if state.num_processes > 1 else made
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    everything.sort(key=lambda c: (order[c.prompt_id], c.seed))
    return Generated(everything, too_long, sum(r.dropped_turns > 0 for _, r in rendered if r))


@contextmanager
def merged(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the active adapter is part of the weights, which spares its own products.

    Only on a base of float32: in fewer bits the sum would round a part of the adapter away, and a
    quantised base has nothing to add to. Afterwards the base has the very tensors it had before.
    """
    layers = [each for each in model.modules() if isinstance(each, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    exact = all(weight.dtype == torch.float32 for weight in weights)
    # An adapter on the output layer is none on the embedding that shares its weights.
    tied = any(weight is model.get_input_embeddings().weight for weight in weights)
    if not layers or layers[0].disable_adapters or not exact or tied:
        yield
        return
    before = [weight.data for weight in weights]
    try:
        # `safe_merge` makes new tensors: the adapted weights are in memory twice meanwhile. Without
        # it PEFT adds in place and later subtracts, and what rounding changed would stay.
        model.merge_adapter(safe_merge=True)
        yield
    finally:
        try:
            model.unmerge_adapter()
        finally:
            for weight, data in zip(weights, before, strict=True):
                weight.data = data


def _sample_batch(
    model: PreTrainedModel,
    chat: Chat,
    batch: Sequence[tuple[str, list[int]]],
    sampling: Sampling,
    model_name: str,
) -> list[Candidate]:
    seed = int(short_hash([sampling.seed, [prompt_id for prompt_id, _ in batch]]), 16) % 2**63
    output = sample_tokens(model, chat, [ids for _, ids in batch], sampling, seed)
    made = []
    for row, reply in enumerate(output):
        prompt_id, k = batch[row // sampling.k][0], row % sampling.k
        text = chat.text(reply.text_ids)
        about = [model_name, prompt_id, vars(sampling), k, text]
        made.append(
            Candidate(
                id="c-" + short_hash(about),
                prompt_id=prompt_id,
                text=text,
                model=model_name,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed + k,
                stop="eos" if reply.ended else "length",
            )
        )
    return made


class Reply(NamedTuple):
    """Tokens of one reply.

    Attributes:
        ids: as they were drawn, with the token that ended it.
        ended: whether it ended by itself; else it was cut off.
    """

    ids: list[int]
    ended: bool

    @property
    def text_ids(self) -> list[int]:
        """The tokens that are text."""
        return self.ids[:-1] if self.ended else self.ids


@torch.inference_mode()
def sample_tokens(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> list[Reply]:
    """Draw k replies to each prompt, in one batch; those to one prompt follow each other.

    Args:
        model: on its device, with the adapter to sample from active.
        chat: knows the tokens that end a reply.
        prompts: token ids.
        sampling: how; its `batch_size` and `seed` are the caller's.
        seed: of this batch's random numbers.
    """
    width = max(map(len, prompts))
    pad = chat.tokenizer.pad_token_id
    rows = [[pad] * (width - len(ids)) + list(ids) for ids in prompts]
    held = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    input_ids, mask = (torch.tensor(each, device=model.device) for each in (rows, held))
    torch.manual_seed(seed)
    stops = {chat.stop_id, chat.tokenizer.eos_token_id} - {None}
    how: dict[str, Any] = {"pad_token_id": pad, "eos_token_id": sorted(stops), "do_sample": False}
    if sampling.temperature > 0:
        how |= {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    made = []
    for ids in _replies(model, input_ids, mask, sampling, how):
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        made.append(Reply(ids if end is None else ids[: end + 1], end is not None))
    return made


def _replies(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    how: Mapping[str, Any],
) -> list[list[int]]:
    """Token ids of the k replies to each row of left-padded `ids` (rows x tokens), row by row.

    A reply ends with its stop token, perhaps followed by padding, or after `max_new_tokens`.
    """
    cache = DynamicCache(config=model.config)
    # All but the last token is read once per prompt: the next call must find a token unread. The
    # one that this call draws is thrown away.
    model.generate(
        ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, max_new_tokens=1, **how
    )
    cache.batch_repeat_interleave(sampling.k)
    ids, mask = (each.repeat_interleave(sampling.k, dim=0) for each in (ids, mask))
    replies: list[list[int]] = [[] for _ in range(len(ids))]
    rows = list(range(len(ids)))
    stops = torch.tensor(how["eos_token_id"], device=ids.device)
    for start in range(0, sampling.max_new_tokens, PIECE):
        piece = min(PIECE, sampling.max_new_tokens - start)
        whole = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=piece, **how
        )
        new = whole[:, ids.shape[1] :]
        for row, tokens in zip(rows, new.tolist(), strict=True):
            replies[row] += tokens
        going = (~torch.isin(new, stops).any(dim=1)).nonzero()[:, 0]
        if not len(going):
            break
        cache.batch_select_indices(going)
        rows = [rows[i] for i in going.tolist()]
        ids, mask = whole[going], torch.cat([mask, torch.ones_like(new)], dim=1)[going]
    return replies
