"""An evaluator behind any OpenAI-compatible endpoint, with strict validation.

The key comes from the environment alone (OPENAI_API_KEY). Whatever cannot be read as the rubric's
grades and answers is unscored, with a reason; no answer is ever guessed. What was answered once is
read from the ledger. Not here: what is asked in each mode (`reward.questions`), what the answers
come to (`reward.assemble`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from reward.asking import Asking, Way
from reward.assemble import PLAIN, Desk, Heard
from reward.batch import ask_in_batches
from reward.capability import find_way, noted_way
from reward.client import Client, Unread, settle
from reward.company import Agreement, agreement, sample
from reward.evaluator import Assessment, PartlyAssessed
from reward.forecast import Forecast, forecast
from reward.ledger import Answer, Ledger, memory_ledger, open_ledger
from reward.questions import Interview, Plan, refused
from reward.redact import outgoing
from reward.rubric import Rubric
from reward.service import Pace, Service
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import CheckFailed, EvaluatorStopped

CHANGE = (
    "Change the model (score.evaluator_model, evaluate.judge_model) or base_url: the service must "
    "offer that model under <base_url>/chat/completions, and the model must take temperature 0, "
    "max_completion_tokens and the form of score.structured"
)


class OpenAIEvaluator:
    """Judges through `chat/completions` in a form made from the rubric.

    Args:
        rubric: what is judged.
        service: who is asked.
        ledger: file of what was answered; None = kept in memory, and paid again by the next one.
        offline: read the ledger and ask nobody; no key is needed.
        afresh: what is asked for the n-th time is a question of its own, to see whether the judge
            says the same; a ledger answers it where it was asked n times before.
        pace: how patient to be with the service.
        asking: mode, repeats and form of the answers.

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
        afresh: bool = False,
        pace: Pace | None = None,
        asking: Asking | None = None,
    ) -> None:
        if not offline:
            service.key()
        self.name, self.service, self._offline = service.name, service, offline
        self._rubric, self.rubric = rubric, rubric.id
        self.ledger = ledger
        self._memory = memory_ledger()
        self._before: set[str] | None = set() if afresh else None  # keys
        self._found_way: Way | None = None
        self._pace, self._asking = pace or Pace(), asking or Asking()
        self._interviews: dict[tuple[Asking, Way], Interview] = {}
        self._client: Client[Heard] | None = None
        # Whether a sample has yet to show that replies together are judged as one by one.
        self._sampling = self._asking.agreement_prompts > 0 and not offline
        self._unscored = self._done = 0
        self.facts: dict[str, float] = {}

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        """Judge the candidates of one prompt.

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
            CheckFailed: replies together are not judged as one by one.
            UserError: another process works with the ledger.
            StorageError: the ledger cannot be written.
        """
        unasked = refused(prompts, candidates)
        prompts, candidates = outgoing(self.service, prompts, candidates)
        made: dict[str, Assessment] = {}
        with self._opened() as ledger:
            try:
                way = self._way(ledger, prompts, candidates, unasked, lambda: advance(0))
                if self._sampling:
                    self._check_company(
                        ledger, way, prompts, candidates, unasked, lambda: advance(0)
                    )
                plan = self._interview(self._asking, way).plan(
                    prompts, candidates, unasked, self._before
                )
                if self._before is not None:
                    self._before.update(plan.questions)
                self._run(ledger, plan, self._asking, made, advance)
            except EvaluatorStopped as error:
                finished = [made[c.id] for c in candidates if c.id in made]
                raise PartlyAssessed(str(error), finished) from error
        if plain := sum(PLAIN in assessment.flags for assessment in made.values()):
            self._tell(
                f"{plain} of {len(made)} candidates have plain grades, because the probabilities "
                f"of their digits were not there (flag {PLAIN})"
            )
        return [made[candidate.id] for candidate in candidates]

    def forecast(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        others: Sequence[Path] = (),
    ) -> Forecast:
        """What would be asked first of all and what it would cost; nobody is called."""
        unasked = refused(prompts, candidates)
        prompts, candidates = outgoing(self.service, prompts, candidates)
        way = self._asking.ways()[0]
        if self.ledger and self.ledger.is_file():
            with open_ledger(self.ledger) as ledger:
                way = noted_way(ledger, self.service, self._asking) or way
        before = None if self._before is None else set[str]()
        plans = [self._interview(self._asking, way).plan(prompts, candidates, unasked, before)]
        if self._asking.agreement_prompts:
            some = self._sample(prompts, candidates)
            plans.append(self._interview(_alone(self._asking), way).plan(*some, unasked))
        requests = {request.key: request for plan in plans for request in plan.requests}
        return forecast(self.ledger, list(requests.values()), self.service.prices, others)

    def note(self) -> str:
        """For a live line: money, unscored share, refused calls, and the wait."""
        parts = [] if self._client is None else [self._client.caller.note()]
        if self._unscored:
            parts.append(f"{self._unscored / self._done:.1%} unscored")
        return ", ".join(parts)

    # --- parts ---------------------------------------------------------------------------------

    def _way(
        self,
        ledger: Ledger,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        unasked: Mapping[str, str],
        tick: Callable[[], None],
    ) -> Way:
        """The form to ask for; found out where nobody has, and something is left to ask."""
        way = self._found_way or noted_way(ledger, self.service, self._asking)
        if way is not None:
            return way
        way = self._asking.ways()[0]
        if self._offline or self.service.batch:  # OpenAI's own service takes every form
            return way
        known = ledger.answered()
        plan = self._interview(self._asking, way).plan(prompts, candidates, unasked, self._before)
        first = next((q for key, q in plan.questions.items() if key not in known), None)
        if first is None:
            return way
        self._found_way = find_way(
            self.service, ledger, self._asking, self._pace, first, CHANGE, tick
        )
        return self._found_way

    def _check_company(
        self,
        ledger: Ledger,
        way: Way,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        unasked: Mapping[str, str],
        tick: Callable[[], None],
    ) -> None:
        """Ask a sample together and one by one, and go on only where both say the same."""
        some = self._sample(prompts, candidates)
        found: list[list[Assessment]] = []
        for asking in (_alone(self._asking), self._asking):
            made: dict[str, Assessment] = {}
            plan = self._interview(asking, way).plan(*some, unasked)
            self._run(ledger, plan, asking, made, lambda count: tick())
            left_out = {candidate.id for candidate, _ in plan.unasked}
            found.append([each for name, each in made.items() if name not in left_out])
        self._done = self._unscored = 0
        measured: Agreement = agreement(*found)
        if not measured.asked:
            return
        self.facts = measured.facts()
        self._tell(measured.line())
        if why := measured.problem(self._asking.min_agreement, self._asking.max_unscored):
            raise CheckFailed(
                f"{measured.line()}; {why}. The answers are kept: set score.ask one, or change "
                "that limit"
            )
        self._sampling = False

    def _sample(
        self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]
    ) -> tuple[list[Prompt], list[Candidate]]:
        return sample(prompts, candidates, self._asking.agreement_prompts)

    def _run(
        self,
        ledger: Ledger,
        plan: Plan,
        asking: Asking,
        made: dict[str, Assessment],
        advance: Callable[[int], None],
    ) -> None:
        """Ask what the ledger does not answer, and put the assessments into `made`."""
        for candidate, reason in plan.unasked:
            made[candidate.id] = Assessment.without_score(
                candidate, reason, evaluator=self.name, rubric=self.rubric
            )
        self._done = self._unscored = len(plan.unasked)
        advance(len(plan.unasked))
        desk = Desk(plan, self._rubric, self.name, asking.repeats)

        def done(key: str, found: Heard | Unread) -> None:
            finished = list(desk.take(key, found))
            made.update((assessment.candidate_id, assessment) for assessment in finished)
            self._unscored += sum(not assessment.scored for assessment in finished)
            self._done += len(finished)
            advance(len(finished))

        read = partial(_read, plan)
        if self._offline:
            for request in plan.requests:
                found = settle(ledger.answers(request.key), read, final=True)
                done(request.key, found or Unread("not asked"))
        elif self.service.batch:
            ask_in_batches(self.service, ledger, plan.requests, read, done, lambda: advance(0))
        else:
            self._client = Client(self.service, ledger, read, hint=CHANGE, pace=self._pace)
            asyncio.run(self._client.ask_all(plan.requests, done, lambda: advance(0)))

    def _opened(self) -> AbstractContextManager[Ledger]:
        if self.ledger:
            return open_ledger(self.ledger)
        return nullcontext(self._memory)

    def _interview(self, asking: Asking, way: Way) -> Interview:
        if (asking, way) not in self._interviews:
            made = Interview(self._rubric, self.service.model, asking, way)
            self._interviews[asking, way] = made
        return self._interviews[asking, way]

    def _tell(self, text: str) -> None:
        start = "\n" if sys.stderr.isatty() else ""  # below the live line
        print(f"{start}note: {text}", file=sys.stderr, flush=True)


def _alone(asking: Asking) -> Asking:
    """The same replies one by one, once."""
    return replace(asking, ask="one", repeats=1, agreement_prompts=0)


def _read(plan: Plan, answer: Answer) -> Heard | Unread:
    said = plan.questions[answer.key].read(answer)
    if isinstance(said, str):
        return Unread(said)
    return Heard(said, answer.tokens_in + answer.tokens_out, answer.cost)
