"""Which ways of asking judges exclude each other, and which panels are none."""

from __future__ import annotations

from sft.judging_settings import EMBEDDED, member
from sft.ppo_settings import PpoSection
from sft.sections import EvaluateSection, ScoreSection

Problem = tuple[tuple[str, ...], str]


def judging_problems(score: ScoreSection, evaluate: EvaluateSection) -> list[Problem]:
    """What cannot be in the settings of who judges, each with the fields it is about."""
    found: list[Problem] = []
    if score.ask == "pairwise" and score.expected_grades:
        text = "two replies compared have no grades: set expected_grades false, or another ask"
        found.append((("score.ask", "score.expected_grades"), text))
    if score.mode == "batch" and score.ask == "together" and score.agreement_prompts:
        text = (
            "a batch asks all at once and cannot stop after a sample: measure it live first, then"
            " set score.agreement_prompts 0"
        )
        found.append((("score.mode", "score.agreement_prompts"), text))
    services = [score.evaluator != EMBEDDED, *(text != EMBEDDED for text in score.panel)]
    changed = {
        "ask": score.ask != "one",
        "repeats": score.repeats > 1,
        "expected_grades": score.expected_grades,
    }
    if not any(services):
        text = (
            "the embedded evaluator grades one reply at a time and says the same each time: this"
            " needs evaluator openai"
        )
        found += [
            ((f"score.{name}", "score.evaluator"), text) for name, on in changed.items() if on
        ]
    return found + (_panel(score, evaluate) if score.panel else [])


def stage_problems(stage: str | None, score: ScoreSection, ppo: PpoSection) -> list[Problem]:
    """Settings of the scores that a stage which judges replies while it writes them cannot have."""
    if stage not in ("ppo", "refine"):
        return []
    found: list[Problem] = []
    text = f"{stage} judges replies that it has yet to write, and asks for each: leave it out"
    asks_nobody = {"dry_run": score.dry_run, "rescore": score.rescore}
    found += [((f"score.{name}",), text) for name, on in asks_nobody.items() if on]
    if stage == "ppo" and ppo.reward == "evaluator" and score.mode == "batch":
        text = "every rollout would wait up to 24 h for its batch: set score.mode live"
        found.append((("score.mode", "ppo.reward"), text))
    return found


def _panel(score: ScoreSection, evaluate: EvaluateSection) -> list[Problem]:
    """Judges of a panel that are the same, may not judge, or would not be asked alike."""
    found: list[Problem] = []
    if score.mode == "batch":
        text = "a panel is asked live: each judge's batch would take up to 24 h after the other's"
        found.append((("score.panel", "score.mode"), text))
    own = EMBEDDED if score.evaluator == EMBEDDED else score.evaluator_model
    others = [member(text) for text in score.panel]
    judges = [own, *(model for model, _ in others)]
    if twice := sorted({str(name) for name in judges if judges.count(name) > 1}):
        text = (
            f"{', '.join(twice)} more than once: answers are kept by the model's name, so that"
            " these would be one; give another served name, or set score.repeats"
        )
        found.append((("score.panel", "score.evaluator_model"), text))
    if score.ask == "pairwise" and EMBEDDED in judges:
        text = "the embedded evaluator grades each reply and compares none: leave it out"
        found.append((("score.panel", "score.ask"), text))
    judge = evaluate.judge_model if evaluate.judge == "openai" else evaluate.judge
    if judge in judges[1:]:
        text = f"{judge} judges the training data here and may not judge the result"
        found.append((("score.panel", "evaluate.judge"), text))
    return found
