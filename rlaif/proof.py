"""From the replies of both sides to the proof: report.json, report.html, samples.jsonl.

Also the check that nothing of the training repeats a held-out prompt. Not here: judging
(`rlaif.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.evaluator import Assessment
from rlaif import frontier_charts
from rlaif.charts import Curve, Histogram
from rlaif.compare import build_report
from rlaif.evaluate import Judge, judge_all
from rlaif.measures import Resampling
from rlaif.report import Lengths, Training, table, training_curves, write_report
from rlaif.results import JudgedReply, Report
from rlaif.safety import Gate
from rlaif.samples import choose_samples
from sft import runs
from sft.candidates import Candidate
from sft.config import Recipe
from sft.data import Demonstration, Message, Prompt, check_disjoint
from sft.files import read_rows, sha256_of, short_hash, write_json, write_rows, write_text
from sft.lineage import name_of


def training_files(recipe: Recipe) -> dict[str, Path]:
    """What the policy was trained on: demonstrations, and the prompts of each round walked here."""
    files = {
        "trained on demonstrations": runs.stage_folder(recipe, "finetune") / "demonstrations.jsonl"
    }
    if recipe.policy == "ppo":
        files["trained on prompts"] = runs.stage_folder(recipe, "ppo") / "prompts.jsonl"
        files["chosen by prompts"] = runs.stage_folder(recipe, "ppo") / "looks.jsonl"
        return {name: path for name, path in files.items() if path.is_file()}
    for round in range(1, recipe.rounds + 1):
        files[f"trained on prompts {round}"] = (
            runs.stage_folder(recipe, "candidates", round) / "prompts.jsonl"
        )
    return {name: path for name, path in files.items() if path.is_file()}


def check_held_out(files: Mapping[str, Path], held_out: Sequence[Prompt]) -> None:
    """Law 4: nothing that was trained on repeats or paraphrases a held-out prompt.

    Raises:
        CheckFailed: something does; with the rows.
    """
    for name, path in files.items():
        if "demonstrations" in name:
            check_disjoint(read_rows(path, Demonstration), held_out)
        else:
            check_disjoint(read_rows(path, Prompt), held_out)


def prove(
    recipe: Recipe,
    judge: Judge,
    prompts: Sequence[Prompt],
    replies: Mapping[str, Sequence[Candidate]],
    adapters: Mapping[str, Path | None],
    stage: runs.Stage,
) -> Report:
    """Judge both sides, compare them, and write the files of the proof into the stage's folder.

    Args:
        recipe: its `evaluate` section and seed.
        judge: who judges.
        prompts: the held-out prompts.
        replies: of "policy" and "baseline", one per prompt.
        adapters: the folders of both sides; None = the base itself.
        stage: where the files go.
    """
    count = len(replies["policy"]) + len(replies["baseline"])
    with runs.Progress(count, "verdicts", unit="replies", note=judge.note) as bar:
        ours, theirs, preferences = judge_all(
            judge, prompts, replies["policy"], replies["baseline"], bar.advance
        )
    policy = adapters["policy"]
    judged = {row.prompt_id for row in ours}
    report = build_report(
        ours,
        theirs,
        preferences,
        policy=name_of(policy),
        baseline=name_of(adapters["baseline"]),
        policy_hash=sha256_of(policy) if policy else "base",
        evaluator=judge.name,
        rubric=judge.rubric,
        prompts_hash=short_hash([prompt.id for prompt in prompts]),
        gate=Gate(win_rate_above=recipe.evaluate.min_win_rate_low),
        resampling=Resampling(n=recipe.evaluate.bootstrap, seed=recipe.seed),
        n_outside=sum(not judge.knows(prompt) for prompt in prompts if prompt.id in judged),
    )
    messages = {prompt.id: prompt.messages for prompt in prompts}
    write_report(
        report,
        stage.path("report.html"),
        samples=choose_samples(ours, theirs, preferences, messages, seed=recipe.seed),
        curves=[*training_curves(_trainings(recipe)), *_frontier(recipe)],
        lengths=Lengths([row.words for row in ours], [row.words for row in theirs]),
        histograms=[*_grades(ours, theirs), *_candidate_quality(recipe)],
    )
    write_rows(stage.path("samples.jsonl"), _sides(messages, ours, theirs, preferences))
    write_rows(stage.path("prompts.jsonl"), prompts)
    write_text(stage.path("table.txt"), table(report) + "\n")
    # Last, so that a report.json is never there without what it speaks of.
    write_json(stage.path("report.json"), report.to_json())
    return report


OUTPUTS = ("report.json", "report.html", "samples.jsonl", "prompts.jsonl", "table.txt")


@dataclass(frozen=True)
class Compared:
    """One line of `samples.jsonl`: a prompt with both replies; preference 1 = the policy's."""

    prompt: list[Message]
    policy: JudgedReply
    baseline: JudgedReply
    preference: float | None


def sample_table(path: Path, *, n: int = 100) -> tuple[list[str], list[list[Any]]]:
    """Columns and up to `n` rows of `samples.jsonl`, for tracking."""
    columns = ["risk", "prompt", "policy", "baseline", "preference", "policy safe", "baseline safe"]
    rows = []
    for row in read_rows(path, Compared)[:n]:
        said = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row.prompt)
        ours, theirs = row.policy, row.baseline
        replies = [ours.text, theirs.text]
        rows.append([ours.risk, said, *replies, row.preference, ours.safe, theirs.safe])
    return columns, rows


def _sides(
    messages: Mapping[str, list[Message]],
    ours: Sequence[JudgedReply],
    theirs: Sequence[JudgedReply],
    preferences: Sequence[float | None],
) -> Iterator[Compared]:
    for a, b, preference in zip(ours, theirs, preferences, strict=True):
        yield Compared(messages[a.prompt_id], a, b, preference)


def _trainings(recipe: Recipe) -> list[Training]:
    folders = [("finetune", 1, runs.stage_folder(recipe, "finetune"))]
    if recipe.policy == "ppo":
        folders.append(("ppo", 1, runs.stage_folder(recipe, "ppo")))
    else:
        rounds = range(1, recipe.rounds + 1)
        folders += [("dpo", n, runs.stage_folder(recipe, "dpo", n)) for n in rounds]
    found = [Training(stage, n, folder / "metrics.jsonl") for stage, n, folder in folders]
    return [training for training in found if training.metrics.is_file()]


def drawn_files(recipe: Recipe) -> dict[str, Path]:
    """What the report of PPO draws beside its own figures: the curve of `scripts/frontier.py`."""
    path = runs.stage_folder(recipe, "frontier") / frontier_charts.FILE
    return {"frontier": path} if recipe.policy == "ppo" and path.is_file() else {}


def _frontier(recipe: Recipe) -> list[Curve]:
    """Gold against proxy over KL, where it was computed."""
    return [c for path in drawn_files(recipe).values() for c in frontier_charts.curves(path)]


def _grades(ours: Sequence[JudgedReply], theirs: Sequence[JudgedReply]) -> list[Histogram]:
    made = []
    for name in ("empathy", "helpfulness"):
        series = [
            (
                side,
                [
                    value
                    for row in rows
                    if (value := (row.empathy if name == "empathy" else row.helpfulness))
                    is not None
                ],
            )
            for side, rows in (("baseline", theirs), ("policy", ours))
        ]
        made.append(
            Histogram(f"{name.capitalize()} by the judge", "score, 0 to 1", series, 0.0, 1.0, 20)
        )
    return made


def _candidate_quality(recipe: Recipe) -> list[Histogram]:
    """Quality of the training candidates by the evaluator, a series a round."""
    series = []
    for n in range(1, recipe.rounds + 1):
        path = runs.stage_folder(recipe, "scores", n) / "assessments.jsonl"
        if path.is_file():
            rows = read_rows(path, Assessment)
            series.append((f"round {n}", [row.quality for row in rows if row.quality is not None]))
    return [
        Histogram(
            "Quality of the training candidates by the evaluator",
            "quality, 0 to 1",
            series,
            0.0,
            1.0,
            20,
        )
    ]
