"""Preference pairs as rows of tokens: one rendering for both replies, nothing cut in silence.

Not here: prompts with all their candidates (`rlaif.groups`), training (`rlaif.dpo`).
"""

from __future__ import annotations

from collections.abc import Sequence

from reward.pairs import Pair
from sft.chat import Chat, Rendered
from sft.data import Message
from sft.train import Encoded
from sft.trainer_rules import IDS


def encode_pairs(chat: Chat, pairs: Sequence[Pair]) -> Encoded:
    """Token rows of the pairs that fit: `prompt_id`, `prompt_ids`, `chosen_ids`, `rejected_ids`,
    `length` (tokens of the longer side), `margin`, `confidence` and `ids` (of prompt, chosen and
    rejected).

    Both replies hang on the same prompt tokens: where old turns had to go for one, the pair is
    rendered with the shorter history for both; where one reply merges with the last token of the
    prompt, that token belongs to both replies.
    """
    rows, too_long, shortened = [], 0, 0
    for pair in pairs:
        prompt, dropped = pair.prompt, 0
        sides = _both(chat, prompt, pair)
        while sides and sides[0].dropped_turns != sides[1].dropped_turns:
            more = max(side.dropped_turns for side in sides)
            first = 1 if prompt[0]["role"] == "system" else 0
            prompt, dropped = [*prompt[:first], *prompt[first + more :]], dropped + more
            sides = _both(chat, prompt, pair)
        if sides is None:
            too_long += 1
            continue
        chosen, rejected = sides
        shortened += dropped + chosen.dropped_turns > 0
        # Both prompts begin the tokens of one and the same text.
        shared = min(len(chosen.prompt_ids), len(rejected.prompt_ids))
        longer = max(len(s.prompt_ids) + len(s.completion_ids) for s in sides)
        rows.append(
            {
                "prompt_id": pair.prompt_id,
                IDS: [pair.prompt_id, pair.chosen_id, pair.rejected_id],
                "length": longer,
                "margin": pair.margin,
                "confidence": pair.confidence,
                "prompt_ids": chosen.prompt_ids[:shared],
                "chosen_ids": chosen.prompt_ids[shared:] + chosen.completion_ids,
                "rejected_ids": rejected.prompt_ids[shared:] + rejected.completion_ids,
            }
        )
    return Encoded(rows, too_long, shortened)


def _both(chat: Chat, prompt: Sequence[Message], pair: Pair) -> tuple[Rendered, Rendered] | None:
    """Chosen and rejected after a prompt; None where one does not fit."""
    chosen, rejected = chat.render(prompt, pair.chosen), chat.render(prompt, pair.rejected)
    return (chosen, rejected) if chosen and rejected else None
