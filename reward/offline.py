"""The embedded evaluator: a transparent rubric evaluator that needs no network, key or weights.

It reads wording, so it can be wrong about meaning; what it is worth on replies that people voted on
is measured by `scripts/judge_card.py`. Its patterns are in `reward/assets/*.yaml`.
"""

from collections.abc import Sequence
from pathlib import Path

from reward.criteria import grade_reply
from reward.evaluator import Assessment
from reward.flow import check_rubric, wrong_answers
from reward.fluency import Fluency, fluency
from reward.grades import Grade
from reward.injection import judge_directed
from reward.reading import Reading, read
from reward.rubric import DEFAULT_RUBRIC, Rubric, load_rubric
from sft.candidates import Candidate
from sft.data import Prompt, Risk
from sft.files import UserError

_GRADED = frozenset(("empathy", "relevance", "helpfulness", "clarity", "autonomy"))
_NOTES = ("moralising", "toxic_positivity", "minimising", "refusal")
_GARBLED = 0.6  # fluency factor below which a reply is called garbled


class EmbeddedEvaluator:
    """Grades replies by their wording and runs the rubric's safety flow.

    The flow follows the prompt's risk: the data's label, or the reading where it has none.
    Criteria that wording cannot tell (accuracy) are left out of `criteria` and of the weights.

    Example:
        >>> EmbeddedEvaluator().name
        'embedded-12'
    """

    name = "embedded-12"

    def __init__(self, rubric: Path = DEFAULT_RUBRIC) -> None:
        """Load a rubric.

        Raises:
            UserError: The rubric is invalid, or has nothing that this evaluator can grade.
        """
        self._rubric: Rubric = load_rubric(rubric)
        check_rubric(self._rubric)
        self._criteria = [name for name in self._rubric.criteria if name in _GRADED]
        if not any(self._rubric.criteria[name].weight for name in self._criteria):
            raise UserError(f"{rubric}: no criterion with a weight among {', '.join(_GRADED)}")
        self.rubric = self._rubric.id

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        """Judge candidates of one prompt; see `reward.evaluator.Evaluator`."""
        said = "\n".join(m["content"] for m in prompt.messages if m["role"] == "user")
        risk = prompt.risk
        message = read(said)  # in a talk the concern is often told in the first turn
        spoiled = judge_directed(said)
        return [self._assess(message, risk, candidate, spoiled) for candidate in candidates]

    def _assess(
        self, message: Reading, risk: Risk, candidate: Candidate, spoiled: bool
    ) -> Assessment:
        reply = read(candidate.text)
        if spoiled or judge_directed(candidate.text):
            return self._unscored(candidate, "injection")
        if not reply.sentences:
            return self._unscored(candidate, "empty")
        fluent = fluency(reply, candidate.stop == "eos")
        every = grade_reply(message, reply, fluent, risk)
        grades = {name: every[name] for name in self._criteria}
        items = self._rubric.items(risk)
        wrong = wrong_answers(items, message, reply)
        criteria = {name: round(grade.value, 3) for name, grade in grades.items()}
        return Assessment(
            candidate_id=candidate.id,
            prompt_id=candidate.prompt_id,
            criteria=criteria,
            quality=round(self._rubric.quality({n: g.value for n, g in grades.items()}), 4),
            safe=not any(items[name].verdict == "unsafe" for name in wrong),
            flags=wrong + _notes(reply, fluent),
            critique=_critique(grades, [items[name].question for name in wrong]),
            evaluator=self.name,
            rubric=self.rubric,
            unscored=None,
        )

    def _unscored(self, candidate: Candidate, reason: str) -> Assessment:
        return Assessment.without_score(candidate, reason, evaluator=self.name, rubric=self.rubric)


def _notes(reply: Reading, fluent: Fluency) -> list[str]:
    """Return findings that the safety flow does not decide on."""
    said = {item.family for item in reply.found}
    notes = [name for name in _NOTES if name in said]
    if fluent.factor < _GARBLED:
        notes.append("garbled")
    if fluent.cut_off:
        notes.append("cut_off")
    return notes


def _critique(grades: dict[str, Grade], questions: Sequence[str]) -> str:
    weakest = min(grades, key=lambda name: grades[name].value)
    text = f"Weakest: {weakest} {grades[weakest].value:.1f} of 5 ({grades[weakest].weakest})."
    if questions:
        text += " Safety: " + " ".join(questions)
    return text
