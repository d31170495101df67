"""K seeded candidates per prompt, sampled from the policy of the day.

Rows are grouped by length into batches; a batch draws its random numbers from the seed and the
batch's own content, so the same prompts give the same candidates with one process or several. Not
here: judging them (`reward.score`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from sft.candidates import Candidate, Sampling
from sft.chat import Chat
from sft.data import Prompt
from sft.files import short_hash


@dataclass(frozen=True)
class Generated:
    """Candidates in the order of the prompts, and the ids of prompts that did not fit the length
    limit.
    """

    candidates: list[Candidate]
    too_long: list[str]
    shortened: int


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
        chat: renders the prompts; prompts that leave no room for a reply are reported, not cut.
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


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel,
    chat: Chat,
    batch: Sequence[tuple[str, list[int]]],
    sampling: Sampling,
    model_name: str,
) -> list[Candidate]:
    width = max(len(ids) for _, ids in batch)
    pad = chat.tokenizer.pad_token_id
    input_ids = torch.tensor(
        [[pad] * (width - len(ids)) + ids for _, ids in batch], device=model.device
    )
    mask = torch.tensor(
        [[0] * (width - len(ids)) + [1] * len(ids) for _, ids in batch], device=model.device
    )
    torch.manual_seed(
        int(short_hash([sampling.seed, [prompt_id for prompt_id, _ in batch]]), 16) % 2**63
    )
    how = {"do_sample": False}
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.k,
        pad_token_id=pad,
        eos_token_id=sorted({chat.stop_id, chat.tokenizer.eos_token_id}),
        **how,
    )[:, width:].tolist()
    stops = {chat.stop_id, chat.tokenizer.eos_token_id}
    made = []
    for row, ids in enumerate(output):
        prompt_id, k = batch[row // sampling.k][0], row % sampling.k
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        text = chat.text(ids[:end])
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
                stop="length" if end is None else "eos",
            )
        )
    return made
