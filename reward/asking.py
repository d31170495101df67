"""How a judge is asked: what a request holds, how often, and in which form it has to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sft.judging_settings import Ask, Structure
from sft.sections import ScoreSection

STRUCTURES: tuple[Structure, ...] = ("json_schema", "json_object", "plain")


@dataclass(frozen=True)
class Way:
    """The form of an answer that is asked for.

    Attributes:
        structure: json_schema = held to the names and types; json_object = held to JSON; plain =
            asked for in words alone.
        logprobs: the probabilities of the tokens are asked for too.
    """

    structure: Structure = "json_schema"
    logprobs: bool = False


@dataclass(frozen=True)
class Asking:
    """How a judge is asked; see `sft.judging_settings` for each.

    Attributes:
        ask: one reply a request, all of a prompt together, or two by two in both orders.
        repeats: times that the same is asked, at least 1.
        expected_grades: grades are means over the probabilities of the digits.
        structured: form of the answer; "auto" = found out once and noted in the ledger.
        request_tokens: estimated tokens of a request from which replies together are split.
        agreement_prompts: prompts that are asked one by one too (together only); 0 = none.
        min_agreement: least agreement on them, 0..1.
        max_unscored: most of their replies without a score, 0..1.
    """

    ask: Ask = "one"
    repeats: int = 1
    expected_grades: bool = False
    structured: Literal["auto", "json_schema", "json_object", "plain"] = "json_schema"
    request_tokens: int = 8000
    agreement_prompts: int = 0
    min_agreement: float = 0.7
    max_unscored: float = 0.05

    @classmethod
    def of(cls, section: ScoreSection) -> Asking:
        """What a recipe's section says."""
        return cls(
            section.ask,
            section.repeats,
            section.expected_grades,
            section.structured,
            section.request_tokens,
            section.agreement_prompts if section.ask == "together" else 0,
            section.min_agreement,
            section.max_unscored,
        )

    def ways(self) -> list[Way]:
        """The forms to try, the most exact one first; one of them where it is given."""
        structures = STRUCTURES if self.structured == "auto" else (self.structured,)
        wanted = (True, False) if self.expected_grades else (False,)
        return [Way(structure, logprobs) for structure in structures for logprobs in wanted]
