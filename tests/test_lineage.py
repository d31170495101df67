"""A policy counts as the newest only where it comes from what lies in the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sft import lineage
from sft.config import Recipe
from sft.files import UserError, write_json
from sft.runs import open_stage, stage_folder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A run of two rounds whose stages wrote a line each."""
    made = Recipe(run="r", runs_dir=str(tmp_path), rounds=2)
    write(made, "finetune", {}, "adapter", "sft")
    for number in (1, 2):
        make_round(made, number)
    return made


def write(
    recipe: Recipe, stage: str, inputs: dict[str, Path], output: str, text: str, number: int = 1
) -> Path:
    """Do a stage (again): its one output says `text`."""
    again = recipe.model_copy(update={"overwrite": True})
    with open_stage(again, stage, config={}, inputs=inputs, round=number) as opened:
        path = opened.path(output)
        if output == "adapter":
            write_json(path / "adapter_config.json", {"text": text})
        else:
            path.write_text(text)
        outputs = [output]
        if stage == "candidates":
            opened.path("prompts.jsonl").write_text("the same prompts")
            outputs.append("prompts.jsonl")
        opened.finish(outputs)
    return path


def make_round(recipe: Recipe, number: int, text: str = "first") -> None:
    adapter = lineage.start_adapter(recipe.model_copy(update={"round": number}))
    start = {"adapter": adapter} if adapter else {}
    text = f"{text} {number}"
    candidates = write(recipe, "candidates", start, "candidates.jsonl", text, number)
    judged = {"prompts": candidates.with_name("prompts.jsonl"), "candidates": candidates}
    scores = write(recipe, "scores", judged, "assessments.jsonl", text, number)
    chosen = judged | {"assessments": scores}
    pairs = write(recipe, "pairs", chosen, "pairs.jsonl", text, number)
    write(recipe, "dpo", start | {"pairs": pairs}, "adapter", text, number)


def said(recipe: Recipe) -> str:
    with pytest.raises(UserError) as told:
        lineage.policy_adapter(recipe)
    return str(told.value)


def test_what_was_made_in_order_is_in_order(recipe: Recipe) -> None:
    assert lineage.policy_adapter(recipe) == stage_folder(recipe, "dpo", 2) / "adapter"


def test_a_first_round_done_again_makes_the_second_one_stale(recipe: Recipe) -> None:
    make_round(recipe, 1, "second")
    text = said(recipe)
    assert "round-2/dpo/adapter is out of date" in text
    assert "round-2/candidates was made from another adapter than" in text
    assert "overwrite true: scripts/generate.py --round 2, scripts/score.py --round 2" in text
    assert text.endswith("scripts/dpo.py --round 2, or keep to what is in order: --rounds 1")
    first = recipe.model_copy(update={"rounds": 1})
    assert lineage.policy_adapter(first) == stage_folder(recipe, "dpo") / "adapter"
    make_round(recipe, 2, "second")
    lineage.policy_adapter(recipe)


def test_a_second_round_done_again_in_part_is_stale_from_there(recipe: Recipe) -> None:
    folder = stage_folder(recipe, "candidates", 2)
    judged = {"prompts": folder / "prompts.jsonl", "candidates": folder / "candidates.jsonl"}
    write(recipe, "scores", judged, "assessments.jsonl", "stricter", 2)
    text = said(recipe)
    assert "round-2/pairs was made from another assessments" in text
    assert "overwrite true: scripts/pair.py --round 2, scripts/dpo.py --round 2" in text


def test_rewritten_replies_count_where_pairs_were_made_of_them(recipe: Recipe) -> None:
    candidates = stage_folder(recipe, "candidates", 2) / "candidates.jsonl"
    scores = stage_folder(recipe, "scores", 2) / "assessments.jsonl"
    judged = {"candidates": candidates, "assessments": scores}
    adapter = {"adapter": stage_folder(recipe, "dpo", 1) / "adapter"}
    refined = write(recipe, "refine", adapter | judged, "pairs.jsonl", "first", 2)
    lineage.policy_adapter(recipe)  # the pairs know nothing of them, and need not
    chosen = judged | {"prompts": candidates.with_name("prompts.jsonl"), "refined": refined}
    pairs = write(recipe, "pairs", chosen, "pairs.jsonl", "both", 2)
    write(recipe, "dpo", adapter | {"pairs": pairs}, "adapter", "both", 2)
    lineage.policy_adapter(recipe)
    write(recipe, "refine", adapter | judged, "pairs.jsonl", "second", 2)
    text = said(recipe)
    assert "round-2/pairs was made from another refined than" in text
    write(recipe, "refine", judged, "pairs.jsonl", "second", 2)
    assert "true: scripts/refine.py --round 2, scripts/pair.py --round 2" in said(recipe)


def test_a_new_sft_adapter_makes_every_round_stale(recipe: Recipe) -> None:
    write(recipe, "finetune", {}, "adapter", "other")
    text = said(recipe)
    assert "candidates was made from another adapter" in text
    assert "--rounds 0" not in text
    assert text.count("scripts/dpo.py") == 2
    # The next round does not start from such a policy either.
    with pytest.raises(UserError, match="out of date"):
        lineage.start_adapter(recipe.model_copy(update={"round": 2}))
    base = recipe.model_copy(update={"start_adapter": "none"})
    assert "another adapter than the base itself" in said(base)


def test_a_stage_that_was_stopped_while_done_again_counts_as_changed(recipe: Recipe) -> None:
    again = recipe.model_copy(update={"overwrite": True})
    with (
        pytest.raises(KeyboardInterrupt),
        open_stage(again, "pairs", config={}, inputs={}, round=1),
    ):
        raise KeyboardInterrupt
    assert "pairs" in said(recipe)


def test_what_was_cleared_away_or_brought_along_is_not_doubted(recipe: Recipe) -> None:
    for number in (1, 2):
        shutil.rmtree(stage_folder(recipe, "candidates", number))
        shutil.rmtree(stage_folder(recipe, "scores", number))
    lineage.policy_adapter(recipe)
    shutil.rmtree(stage_folder(recipe, "finetune", 1))
    lineage.policy_adapter(recipe)
    (stage_folder(recipe, "dpo", 2) / "manifest.json").unlink()
    write(recipe, "finetune", {}, "adapter", "other")
    chosen = stage_folder(recipe, "dpo", 2) / "adapter"
    assert lineage.policy_adapter(recipe.model_copy(update={"adapter": str(chosen)})) == chosen
