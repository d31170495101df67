"""Candidates from any OpenAI-compatible server that serves the policy (vLLM), each paid for once.

The server renders the conversation by its own chat template and decides what is too long: no turn
is left out here. Every reply is a request of its own with a seed of its own, so that a stopped run
goes on where it was. Not here: which adapter the server has loaded, which is its owner's to see to.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.client import Client, Unread
from reward.forecast import Forecast, forecast
from reward.ledger import Answer, open_ledger
from reward.redact import Veil, hidden, veil_for
from reward.service import Pace, Request, Service
from reward.shards import LEDGER
from sft import lineage
from sft.candidates import Candidate, Generated, Sampling
from sft.chat import system_prompt
from sft.data import Message, Prompt
from sft.files import CheckFailed, UserError, short_hash, to_json
from sft.progress import Progress
from sft.recipe import Recipe

CHANGE = (
    "Change generate.served_model or generate.base_url: the server must offer the policy under "
    "that name at <base_url>/chat/completions; or lower generate.max_new_tokens"
)
MOST_MISSING = 0.05  # share of replies that a server may owe before the stage fails
TYPICAL_TOKENS = 150
REJECTED = frozenset({"service: 400", "service: 413", "service: 422"})  # of a prompt too long


@dataclass(frozen=True)
class _Wanted:
    """One reply that is wanted."""

    prompt: Prompt
    k: int
    request: Request
    veil: Veil | None  # what was taken out of the prompt, to be put back into the reply


class ServedPolicy:
    """The policy behind a server.

    Args:
        recipe: its `generate` and `model` sections.
        adapter: the adapter that the server has loaded; None = the base.
        pace: how patient to be with the server.

    Raises:
        UserError: the server's name for the policy is missing.
    """

    def __init__(self, recipe: Recipe, adapter: Path | None, pace: Pace | None = None) -> None:
        section = recipe.generate
        if section.served_model is None:
            raise UserError("generate.backend openai needs generate.served_model")
        self.service = Service.of(section, section.served_model)
        self._system = system_prompt(recipe.model.system_prompt)
        self._name = lineage.name_of(adapter)
        self._pace = pace or Pace()

    def replies(self, prompts: Sequence[Prompt], sampling: Sampling, folder: Path) -> Generated:
        """Ask for all replies that the ledger in `folder` does not have.

        Raises:
            EvaluatorStopped: the server refuses to go on.
            CheckFailed: more than 5 % of the replies never came.
        """
        wanted = self._wanted(prompts, sampling)
        made: dict[str, Answer] = {}
        missing: dict[str, str] = {}
        with ExitStack() as stack:
            ledger = stack.enter_context(open_ledger(folder / LEDGER))
            # A reply is whatever came, cut off or not.
            client: Client[Answer] = Client(
                self.service, ledger, lambda a: a, hint=CHANGE, pace=self._pace, whole=False
            )
            note = client.caller.note
            bar = stack.enter_context(Progress(len(wanted), "candidates", "replies", note=note))

            def done(key: str, found: Answer | Unread) -> None:
                if isinstance(found, Unread):
                    missing[key] = found.reason
                else:
                    made[key] = found
                bar.advance(1)

            requests = [each.request for each in wanted]
            asyncio.run(client.ask_all(requests, done, lambda: bar.advance(0)))
        too_long = self._too_long(wanted, missing)
        candidates = [
            self._candidate(each, made[each.request.key], sampling)
            for each in wanted
            if each.request.key in made and each.prompt.id not in too_long
        ]
        return Generated(candidates, [p.id for p in prompts if p.id in too_long], 0)

    def forecast(self, prompts: Sequence[Prompt], sampling: Sampling, folder: Path) -> Forecast:
        """What would be asked and what it would cost; nobody is called."""
        requests = [each.request for each in self._wanted(prompts, sampling)]
        return forecast(folder / LEDGER, requests, self.service.prices)

    def _wanted(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[_Wanted]:
        return [
            _Wanted(prompt, k, self._request(prompt.id, messages, k, sampling), veil)
            for prompt in prompts
            for veil in (veil_for(self.service, prompt),)
            for messages in (hidden(veil, prompt),)
            for k in range(sampling.k)
        ]

    def _request(
        self, prompt_id: str, messages: list[Message], k: int, sampling: Sampling
    ) -> Request:
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        body: dict[str, Any] = {
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed + k,
        }
        limit = sampling.max_new_tokens
        about = to_json(["reply", self.service.model, self._name, prompt_id, limit, body])
        key = hashlib.sha256(about.encode("utf-8", "replace")).hexdigest()[:32]
        example = " word" * min(TYPICAL_TOKENS, limit)
        return Request(key, lambda tokens: body | {"max_completion_tokens": tokens}, limit, example)

    def _too_long(self, wanted: Sequence[_Wanted], missing: dict[str, str]) -> set[str]:
        """Prompts that the server did not take; too many replies missing for another reason end
        the stage.
        """
        refused = {each.prompt.id for each in wanted if missing.get(each.request.key) in REJECTED}
        others = Counter(reason for reason in missing.values() if reason not in REJECTED)
        if sum(others.values()) > MOST_MISSING * len(wanted):
            listed = ", ".join(f"{count} {reason}" for reason, count in others.most_common())
            raise CheckFailed(
                f"{sum(others.values())} of {len(wanted)} replies never came: {listed}. Those that "
                "did are kept: mend the cause and run the same command again"
            )
        return refused

    def _candidate(self, wanted: _Wanted, answer: Answer, sampling: Sampling) -> Candidate:
        text = answer.text.strip()
        text = wanted.veil.restore(text) if wanted.veil else text
        about = [self._name, wanted.prompt.id, vars(sampling), wanted.k, text]
        return Candidate(
            id="c-" + short_hash(about),
            prompt_id=wanted.prompt.id,
            text=text,
            model=self._name,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed + wanted.k,
            stop="length" if answer.finish == "length" else "eos",
        )
