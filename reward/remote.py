"""An evaluator behind any OpenAI-compatible endpoint: one reply per request, strict validation.

The key comes from the environment alone (OPENAI_API_KEY). Whatever cannot be read as the rubric's
grades and answers is unscored, with a reason; no answer is ever guessed. What was answered once is
read from the ledger. Not here: several candidates in one request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reward.batch import ask_in_batches
from reward.client import Client, Unread, settle
from reward.evaluator import Assessment, PartlyAssessed
from reward.forecast import Forecast, forecast
from reward.injection import judge_directed
from reward.ledger import Answer, Ledger, memory_ledger, open_ledger
from reward.request import Form
from reward.rubric import Rubric
from reward.service import Pace, Request, Service
from reward.verdict import read_verdict
from sft.candidates import Candidate
from sft.data import Prompt, Risk
from sft.files import EvaluatorStopped

CHANGE = (
    "Change the model (score.evaluator_model, evaluate.judge_model) or base_url: the service must "
    "offer that model under <base_url>/chat/completions, and the model must take response_format "
    "json_schema, temperature 0 and max_completion_tokens"
)
# As long as judges' critiques are that were asked for one or two sentences.
TYPICAL = (
    "The reply names the feeling and asks an open question, but its advice is general and it does "
    "not take up what the person said about the weekend."
)
Judged = tuple[dict[str, Any], int, float]  # the verdict, tokens and US dollars paid for it


@dataclass(frozen=True)
class Plan:
    """What has to be asked about candidates.

    Attributes:
        requests: each key once.
        about: the candidates of each key; those with the same prompt and text share one.
        unasked: candidates that the judge never sees, and why.
    """

    requests: list[Request]
    about: dict[str, list[Candidate]]
    unasked: list[tuple[Candidate, str]]


class OpenAIEvaluator:
    """Judges through `chat/completions` with a JSON schema made from the rubric.

    Args:
        rubric: what is judged.
        service: who is asked.
        ledger: file of what was answered; None = kept in memory, and paid again by the next one.
        offline: read the ledger and ask nobody; no key is needed.
        pace: how patient to be with the service.

    Raises:
        EvaluatorStopped: OpenAI's own service needs a key.
    """

    def __init__(
        self,
        rubric: Rubric,
        service: Service,
        *,
        ledger: Path | None = None,
        offline: bool = False,
        pace: Pace | None = None,
    ) -> None:
        if not offline:
            service.key()
        self.name, self.service, self._offline = service.name, service, offline
        self._rubric, self.rubric = rubric, rubric.id
        self.ledger, self._memory = ledger, memory_ledger()
        self._pace = pace or Pace()
        self._forms: dict[Risk, Form] = {}
        self._client: Client[Judged] | None = None
        self._unscored = self._done = 0

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        """Judge each candidate of one prompt by itself, in parallel.

        Raises:
            PartlyAssessed: the service refuses to go on; it carries what was answered before.
        """
        return self.assess_all([prompt], candidates, lambda count: None)

    def assess_all(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        advance: Callable[[int], None],
    ) -> list[Assessment]:
        """Judge the candidates of many prompts, as many at once as the service bears.

        Candidates with the same prompt and text are one request.

        Args:
            prompts: those that the candidates answer.
            candidates: in any order.
            advance: called with the number of candidates finished, and several times a second with
                0, for a live line.

        Returns:
            One assessment per candidate, in their order.

        Raises:
            PartlyAssessed: the service refuses to go on, or the cap is reached.
            UserError: another process works with the ledger.
            StorageError: the ledger cannot be written.
        """
        asked = {prompt.id: prompt for prompt in prompts}
        plan = self.plan(prompts, candidates)
        about = plan.about
        made = {c.id: self._without(c, reason) for c, reason in plan.unasked}
        self._done = self._unscored = len(made)
        advance(len(made))

        def done(key: str, found: Judged | Unread) -> None:
            for number, candidate in enumerate(about[key]):
                risk = asked[candidate.prompt_id].risk
                # What two candidates share was paid once.
                made[candidate.id] = self._assessment(candidate, risk, found, paid=number == 0)
                self._unscored += isinstance(found, Unread)
            self._done += len(about[key])
            advance(len(about[key]))

        with self._opened() as ledger:
            try:
                self._ask(ledger, plan.requests, partial(self._read, about, asked), done, advance)
            except EvaluatorStopped as error:
                finished = [made[c.id] for c in candidates if c.id in made]
                raise PartlyAssessed(str(error), finished) from error
        return [made[candidate.id] for candidate in candidates]

    def forecast(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> Forecast:
        """What would be asked and what it would cost; nobody is called."""
        fields = {**dict.fromkeys(self._rubric.criteria, 3)}
        fields |= dict.fromkeys(self._rubric.items("none"), True)
        example = json.dumps({"critique": TYPICAL, **fields})
        requests = self.plan(prompts, candidates).requests
        return forecast(self.ledger, requests, self.service.prices, example)

    def plan(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> Plan:
        """What has to be asked, each thing once, whether the ledger has it or not."""
        asked = {prompt.id: prompt for prompt in prompts}
        requests: dict[str, Request] = {}
        about: dict[str, list[Candidate]] = {}
        unasked: list[tuple[Candidate, str]] = []
        for candidate in candidates:
            prompt = asked[candidate.prompt_id]
            if reason := _unasked(prompt, candidate):
                unasked.append((candidate, reason))
                continue
            request = self._form(prompt.risk).request(prompt, candidate)
            requests.setdefault(request.key, request)
            about.setdefault(request.key, []).append(candidate)
        return Plan(list(requests.values()), about, unasked)

    def note(self) -> str:
        """For a live line: money, unscored share, refused calls, and the wait."""
        parts = [] if self._client is None else [self._client.caller.note()]
        if self._unscored:
            parts.append(f"{self._unscored / self._done:.1%} unscored")
        return ", ".join(parts)

    # --- parts ---------------------------------------------------------------------------------

    def _ask(
        self,
        ledger: Ledger,
        requests: Sequence[Request],
        read: Callable[[Answer], Judged | Unread],
        done: Callable[[str, Judged | Unread], None],
        advance: Callable[[int], None],
    ) -> None:
        if self._offline:
            for request in requests:
                found = settle(ledger.answers(request.key), read, final=True)
                done(request.key, found or Unread("not asked"))
        elif self.service.batch:
            ask_in_batches(self.service, ledger, requests, read, done, lambda: advance(0))
        else:
            self._client = Client(self.service, ledger, read, hint=CHANGE, pace=self._pace)
            asyncio.run(self._client.ask_all(requests, done, lambda: advance(0)))

    def _opened(self) -> AbstractContextManager[Ledger]:
        return open_ledger(self.ledger) if self.ledger else nullcontext(self._memory)

    def _form(self, risk: Risk) -> Form:
        if risk not in self._forms:
            self._forms[risk] = Form(self._rubric, risk, self.service.model)
        return self._forms[risk]

    def _read(
        self, about: dict[str, list[Candidate]], prompts: dict[str, Prompt], answer: Answer
    ) -> Judged | Unread:
        risk = prompts[about[answer.key][0].prompt_id].risk
        verdict = read_verdict(answer.text, self._form(risk).verdict)
        if isinstance(verdict, str):
            return Unread(verdict)
        return verdict, answer.tokens_in + answer.tokens_out, answer.cost

    def _assessment(
        self, candidate: Candidate, risk: Risk, found: Judged | Unread, *, paid: bool
    ) -> Assessment:
        if isinstance(found, Unread):
            return self._without(candidate, found.reason)
        verdict, tokens, cost = found
        items = self._rubric.items(risk)
        grades = {name: float(verdict[name]) for name in self._rubric.criteria}
        wrong = [name for name, item in items.items() if verdict[name] != item.safe_answer]
        return Assessment(
            candidate_id=candidate.id,
            prompt_id=candidate.prompt_id,
            criteria=grades,
            quality=self._rubric.quality(grades),
            safe=not any(items[name].verdict == "unsafe" for name in wrong),
            flags=wrong,
            critique=verdict["critique"],
            evaluator=self.name,
            rubric=self.rubric,
            unscored=None,
            tokens=tokens if paid else 0,
            cost=cost if paid else 0.0,
        )

    def _without(self, candidate: Candidate, reason: str) -> Assessment:
        return Assessment.without_score(candidate, reason, evaluator=self.name, rubric=self.rubric)


def _unasked(prompt: Prompt, candidate: Candidate) -> str | None:
    """Why a reply is never shown to the judge; None = it is."""
    if not candidate.text.strip():
        return "empty"
    said = [candidate.text, *(message["content"] for message in prompt.messages)]
    return "injection" if any(map(judge_directed, said)) else None
