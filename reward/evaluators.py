"""Which evaluator a recipe means."""

from __future__ import annotations

from pathlib import Path

from reward.evaluator import Evaluator
from reward.offline import EmbeddedEvaluator
from reward.rubric import DEFAULT_RUBRIC, load_rubric
from sft.files import UserError


def make_evaluator(
    kind: str, *, rubric: str | None, model: str | None, base_url: str | None
) -> Evaluator:
    """The evaluator called `kind` ("embedded" or "openai") with a rubric; None = the project's.

    Raises:
        UserError: the rubric is missing or wrong, or the service's model has no name.
        EvaluatorStopped: the service needs a key.
    """
    path = Path(rubric) if rubric else DEFAULT_RUBRIC
    if kind == "embedded":
        return EmbeddedEvaluator(path)
    # The client takes a second to import and is rarely wanted.
    from reward.remote import OpenAIEvaluator

    if model is None:
        raise UserError("evaluator openai needs the name of a model")
    return OpenAIEvaluator(load_rubric(path), model=model, base_url=base_url)
