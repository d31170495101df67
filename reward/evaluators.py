"""Which evaluator a recipe means, and the embedded one's rule on what may be learned from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from reward.asking import Asking
from reward.evaluator import Evaluator
from reward.offline import EmbeddedEvaluator
from reward.risk import message_risk
from reward.rubric import DEFAULT_RUBRIC, load_rubric
from reward.service import Service
from reward.shards import LEDGER
from sft.candidates import Candidate
from sft.config import ScoreSection
from sft.data import Demonstration, Prompt
from sft.files import UserError
from sft.judging_settings import EMBEDDED, member


def make_evaluator(
    kind: str,
    *,
    rubric: str | None,
    service: Service | None = None,
    ledger: Path | None = None,
    offline: bool = False,
    afresh: bool = False,
    asking: Asking | None = None,
) -> Evaluator:
    """The evaluator called `kind` ("embedded" or "openai").

    Args:
        kind: who judges.
        rubric: path of what is judged; None = the project's.
        service: who is asked (openai only).
        ledger: file of what was answered (openai only); None = kept as long as the process lives.
        offline: read the ledger and ask nobody (openai only); no key is needed.
        afresh: ask the same again where it is wanted again (openai only), see `reward.remote`.
        asking: mode, repeats and form of the answers (openai only); None = one reply a request, in
            the first form that the service understands.

    Raises:
        UserError: the rubric is missing or wrong, or the service is.
        EvaluatorStopped: the service needs a key.
    """
    path = Path(rubric) if rubric else DEFAULT_RUBRIC
    if kind == EMBEDDED:
        return EmbeddedEvaluator(path)
    # The client takes a second to import and is rarely wanted.
    from reward.remote import OpenAIEvaluator

    if service is None:
        raise UserError("evaluator openai needs the name of a model")
    return OpenAIEvaluator(
        load_rubric(path),
        service,
        ledger=ledger,
        offline=offline,
        afresh=afresh,
        asking=asking or Asking(structured="auto"),
    )


def recipe_evaluator(section: ScoreSection, folder: Path) -> Evaluator:
    """The evaluator of the training data, with its ledger in the stage's folder; or a panel.

    Raises:
        UserError: see `make_evaluator`; `rescore` of an evaluator that keeps no answers.
        EvaluatorStopped: the service needs a key.
    """
    judges: list[tuple[str, str | None]] = [(section.evaluator_model or "", section.base_url)]
    if section.evaluator == EMBEDDED:
        judges = [(EMBEDDED, None)]
    for text in section.panel:
        model, address = member(text)
        judges.append((model, address or section.base_url))
    if section.rescore and all(model == EMBEDDED for model, _ in judges):
        raise UserError("rescore reads a service's stored answers: the embedded evaluator has none")
    members = [_judge(section, model, address, folder) for model, address in judges]
    if len(members) == 1:
        return members[0]
    # Its parts read slowly and are rarely wanted.
    from reward.panel import Panel

    return Panel(members)


def _judge(section: ScoreSection, model: str, address: str | None, folder: Path) -> Evaluator:
    """One judge of a recipe."""
    service = None
    if model and model != EMBEDDED:
        at = section.model_copy(update={"base_url": address})
        service = Service.of(at, model, batch=section.mode == "batch")
    return make_evaluator(
        EMBEDDED if model == EMBEDDED else "openai",
        rubric=section.rubric,
        service=service,
        ledger=folder / LEDGER,
        offline=section.rescore or section.dry_run,
        asking=Asking.of(section),
    )


def why_unsafe(row: Demonstration) -> str | None:
    """Why a demonstration's answer fails the safety flow for what was asked; None = it passes.

    The violated questions of the project's rubric by name, or why the answer has no verdict. The
    flow follows the source's label of risk, or the reading where there is none.
    """
    risk = row.risk or message_risk(row.prompt).risk
    prompt = Prompt(row.prompt_id, row.prompt, "demonstration", row.topic, risk, "train")
    answer = Candidate(
        id=row.prompt_id,
        prompt_id=row.prompt_id,
        text=row.completion[0]["content"],
        model="demonstration",
        temperature=0.0,
        top_p=1.0,
        seed=0,
        stop="eos",
    )
    verdict = _embedded().assess(prompt, [answer])[0]
    if verdict.unscored is not None:
        return verdict.unscored
    if verdict.safe:
        return None
    return ", ".join(name for name in verdict.flags if name in _deciding())


@cache
def _embedded() -> EmbeddedEvaluator:
    return EmbeddedEvaluator()


@cache
def _deciding() -> frozenset[str]:
    """The questions of the safety flow whose wrong answer makes a reply unsafe."""
    items = load_rubric(DEFAULT_RUBRIC).safety.items()
    return frozenset(name for name, item in items if item.verdict == "unsafe")
