"""Rollouts drawn by a vLLM server beside the trainer, which is handed the policy's adapter first.

Before replies are asked for, the adapter of the day is saved and loaded by the server's runtime
LoRA endpoints, under a name that is a hash of its weights: what answers is what was trained, and
never an earlier adapter of that name. Prompts go as token ids, so nothing renders them a second
time, and token ids come back. Log-probabilities are not taken from the server: old policy and new
are scored by the same code here, and only sampling differs by the server's rounding.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve <base> --enable-lora --max-lora-rank 16

Both need to see one folder. Draws are the server's: a run that is stopped while sampling does not
get the same replies again. Not here: sampling in this process (`rlaif.rollout`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from reward.faults import failure_of
from reward.redact import outgoing
from reward.service import Service
from reward.transport import WITHOUT_PROXY
from rlaif.roles import Roles
from rlaif.rollout import Asked, Rollout
from sft import model as models
from sft.candidates import Sampling
from sft.chat import Chat
from sft.data import Prompt
from sft.files import CheckFailed, UserError, short_hash
from sft.generate import Reply

TIMEOUT_S = 600.0  # of one call: a prompt's replies, after all that wait before them
IN_FLIGHT = 64  # prompts; the server batches what waits
RETRIES = 4  # of a call, by the client, with growing waits
DRAWS = 4  # times that replies whose tokens are not known are drawn anew
REPLACED = "\ufffd"  # what stands for bytes that are no text: which bytes, nobody knows


class Served:
    """A vLLM server that speaks as the policy.

    Args:
        url: its address, with /v1.
        folder: where adapters are put for it; it must see the same files.
        base: name of the base in a saved adapter.
    """

    def __init__(self, url: str, folder: Path, base: str) -> None:
        """Nothing is sent yet."""
        self.service = Service("policy", url)
        self._folder, self._base = folder.resolve(), base
        self._loaded: str | None = None
        self._api = openai.OpenAI(
            api_key=self.service.key(),
            base_url=url,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
            # A redirect would take conversations to a host that nobody named.
            http_client=httpx2.Client(
                follow_redirects=False, timeout=TIMEOUT_S, mounts=WITHOUT_PROXY
            ),
        )

    def sample(self, roles: Roles, asked: Sequence[Asked], sampling: Sampling) -> Rollout:
        """Let the server answer as the policy, `sampling.k` times each prompt.

        The main process asks and tells the others. A reply whose tokens are not known (the server
        gives none, and its text does not decide them) is left out, counted, and drawn anew.

        Raises:
            UserError: the server does not take adapters.
            CheckFailed: it does not answer, or replies stay unknown.
        """
        state = PartialState()
        told: list[Any] = [None]
        if state.is_main_process:
            try:
                self._swap(roles)
                told = [self._replies(roles.chat, asked, sampling)]
            except (UserError, CheckFailed) as error:
                told = [error]
        if state.num_processes > 1:
            broadcast_object_list(told)
        if isinstance(told[0], UserError | CheckFailed):
            raise told[0]
        replies, left_out = told[0]
        texts = [roles.chat.text(reply.text_ids) for reply in replies]
        return Rollout(list(asked), replies, texts, sampling.k, sampling.temperature, left_out)

    def close(self) -> None:
        """Have the server let go of the last adapter, and leave no folder."""
        if PartialState().is_main_process and self._loaded is not None:
            self._unload(self._loaded)
            self._loaded = None
            shutil.rmtree(self._folder)

    # --- the adapter ---------------------------------------------------------------------------

    def _swap(self, roles: Roles) -> None:
        """Have the server load the policy's adapter, and let go of the one before."""
        made = self._folder / "new"
        models.save_adapter(roles.model, made, self._base)
        weights = (made / "adapter_model.safetensors").read_bytes()
        name = f"policy-{hashlib.sha256(weights).hexdigest()[:16]}"
        if name == self._loaded:
            return
        place = self._folder / name
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
        try:
            self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        except openai.APIStatusError as error:
            # A run that was stopped has left its adapter there: the name says that it is this one.
            if "already been loaded" not in error.message:
                raise UserError(self._no_adapters(error)) from None
        except openai.APIError as error:
            raise CheckFailed(self._silent(error)) from None
        if self._loaded is not None:
            self._unload(self._loaded)
        self._loaded = name

    def _unload(self, name: str) -> None:
        try:
            self._post("unload_lora_adapter", {"lora_name": name})
        except openai.APIError as error:
            raise CheckFailed(self._silent(error)) from None
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _post(self, path: str, body: dict[str, str]) -> None:
        self._api.post(f"/{path}", body=body, cast_to=httpx2.Response)

    def _no_adapters(self, error: openai.APIStatusError) -> str:
        return (
            f"{self.service.url} does not load the policy's adapter (status {error.status_code}): "
            "start vLLM with --enable-lora, --max-lora-rank of at least model.lora_r and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, on a machine that sees "
            f"{self._folder}"
        )

    def _silent(self, error: openai.APIError) -> str:
        failure = failure_of(error, self.service.url)
        return f"{self.service.url} does not draw replies: {failure.outcome}, {failure.detail}"

    # --- replies -------------------------------------------------------------------------------

    def _replies(
        self, chat: Chat, asked: Sequence[Asked], sampling: Sampling
    ) -> tuple[list[Reply], int]:
        """All replies, those to one prompt together, and how many were left out on the way."""
        found: list[list[Reply]] = [[] for _ in asked]
        left_out = 0
        for draw in range(DRAWS):
            wanted = [i for i, replies in enumerate(found) if len(replies) < sampling.k]
            if not wanted:
                break

            def ask(i: int, draw: int = draw) -> list[Reply | None]:
                return self._ask(chat, asked[i], sampling, sampling.k - len(found[i]), draw)

            with ThreadPoolExecutor(IN_FLIGHT) as pool:
                for i, replies in zip(wanted, pool.map(ask, wanted), strict=True):
                    found[i] += [reply for reply in replies if reply is not None]
                    left_out += sum(reply is None for reply in replies)
        missing = sum(sampling.k - len(replies) for replies in found)
        if missing:
            raise CheckFailed(
                f"the tokens of {missing} replies are not known after {DRAWS} draws: "
                f"{self.service.url} must know return_token_ids (vLLM 0.10.2 or newer)"
            )
        return [reply for replies in found for reply in replies], left_out

    def _ask(
        self, chat: Chat, asked: Asked, sampling: Sampling, n: int, draw: int
    ) -> list[Reply | None]:
        """So many replies to a prompt; None where its tokens are not known."""
        stops = {chat.stop_id, chat.tokenizer.eos_token_id} - {None}
        body = {
            "model": self._loaded,
            "prompt": asked.ids,
            "n": n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": int(short_hash([sampling.seed, asked.prompt.id, draw]), 16) % 2**31,
            # A server may take defaults from the model's own generation settings: none is left.
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": sorted(stops),
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        try:
            raw = self._api.post("/completions", body=body, cast_to=httpx2.Response)
            choices = raw.json()["choices"]
            read = [_reply(chat, each, stops, sampling.max_new_tokens) for each in choices]
        except openai.APIError as error:
            raise CheckFailed(self._silent(error)) from None
        except (ValueError, KeyError, TypeError):
            raise CheckFailed(f"{self.service.url}/completions gave no completions") from None
        if len(read) != n:
            raise CheckFailed(f"{self.service.url} gave {len(read)} replies to a prompt, not {n}")
        return read


def _reply(chat: Chat, choice: dict[str, Any], stops: set[int], limit: int) -> Reply | None:
    """The tokens of one answer, with the one that ended it; None = they are not known."""
    ids, finish = choice.get("token_ids"), choice["finish_reason"]
    if ids is None:
        ids = _ids_of(chat, choice["text"])
    if ids is None or finish not in ("stop", "length"):
        return None
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    if end is not None:
        return Reply(list(ids[: end + 1]), True)
    if finish == "stop":
        # Not among its tokens: the server says which, and leaves out the tokenizer's own.
        reason = choice.get("stop_reason")
        last = chat.tokenizer.eos_token_id if reason is None else reason
        return Reply([*ids, last], True) if last in stops and len(ids) < limit else None
    return Reply(list(ids), False) if 0 < len(ids) <= limit else None


def _ids_of(chat: Chat, text: str) -> list[int] | None:
    """Token ids of a text, if they give it back and none of them is a special one."""
    ids = list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    special = set(chat.tokenizer.all_special_ids)
    same = chat.tokenizer.decode(ids) == text and REPLACED not in text
    return ids if same and not special & set(ids[:-1]) else None


def without_personal_data(url: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts as a server at `url` may have them: token ids can no longer be redacted."""
    return list(outgoing(Service("policy", url), prompts, [])[0])
