"""Which demonstrations and prompts a recipe means: curated, apart from the proof, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward.evaluators import why_unsafe
from reward.risk import message_risk
from sft import material
from sft.config import Recipe
from sft.data import Demonstration, Message, Risk, check_disjoint, overlapping
from sft.files import CheckFailed, UserError, write_rows
from sft.simulator import practice_demonstrations

KIND = "It makes sense that this is on your mind. What would make tomorrow a little easier for you?"
COLD = "Stop taking your antidepressants and double your sleeping pills tonight, that will help."
ASKED = {
    "office": "My boss checks every mail that I write and I feel small.",
    "kitchen": "Since the move nobody cooks or eats together any more.",
    "garden": "I planted tomatoes with my late father and now they wither.",
    "library": "Whenever I open a textbook my thoughts drift far away.",
    "harbour": "My husband works at sea and comes back a stranger each time.",
    "bakery": "I rise at three every morning and have no evenings left.",
    "orchestra": "Before each concert my hands shake so much that I hide them.",
    "theatre": "They gave my role to someone younger and I smiled about it.",
}
WORK = tuple(ASKED)


def risk_of(messages: list[Message]) -> Risk:
    return message_risk(messages).risk


def harmless(row: Demonstration) -> str | None:
    return None


def asked(place: str) -> list[Message]:
    return [{"role": "user", "content": ASKED[place]}]


def written(path: Path, answers: dict[str, str]) -> Path:
    rows = [
        {"prompt": asked(place), "completion": [{"role": "assistant", "content": answer}]}
        for place, answer in answers.items()
    ]
    write_rows(path, rows)
    return path


def test_a_file_of_demonstrations_is_curated_and_the_arithmetic_is_told(tmp_path):
    answers = {place: f"The {place} can wait. {KIND}" for place in WORK[:3]}
    answers |= {"harbour": COLD, "bakery": "Cheer up."}
    path = written(tmp_path / "d.jsonl", answers)
    recipe = Recipe(run="t", demonstrations=str(path))
    lessons = material.demonstrations(recipe, risk_of, why_unsafe)
    assert [row.prompt for row in lessons.rows] == [asked(place) for place in WORK[:3]]
    assert lessons.figures["dropped"] == {"too short": 1, "unsafe: no_medication_advice": 1}
    assert lessons.arithmetic.startswith("5 read - (1 + 1) dropped = 3 kept; 3 - 0 that repeat a")
    assert lessons.figures["used"] == 3


def test_the_practice_clinic_is_left_as_it_is():
    recipe = Recipe(run="t", finetune={"n_demonstrations": 40})

    def refuse(row: Demonstration) -> str | None:
        raise AssertionError("the clinic's demonstrations are flawed on purpose")

    lessons = material.demonstrations(recipe, risk_of, refuse)
    assert lessons.rows == practice_demonstrations(40, recipe.seed)


def test_the_projects_demonstrations_are_curated_too():
    recipe = Recipe(run="t", demonstrations="project")
    whole = material.demonstrations(recipe, risk_of, why_unsafe)
    # Three of the project's 98 replies, each to four wordings, are taken for harmful ones.
    assert whole.figures["kept"] >= 380
    assert set(whole.figures["dropped"]) <= {"unsafe: no_dismissal", "unsafe: no_false_promise",
                                             "unsafe: no_forced_crisis_talk"}  # fmt: skip
    with pytest.raises(UserError, match=r"392 read - \(392\) dropped = 0 kept.*392 unsafe: a test"):
        material.demonstrations(recipe, risk_of, lambda row: "a test")


def test_what_repeats_a_held_out_prompt_is_left_out_though_the_proof_asks_fewer(tmp_path):
    answers = {place: f"The {place} can wait. {KIND}" for place in WORK}
    path = written(tmp_path / "d.jsonl", answers)
    held_out = [{"messages": asked(place)} for place in WORK[:3]]
    write_rows(tmp_path / "held_out.jsonl", held_out)
    recipe = Recipe(
        run="t",
        demonstrations=str(path),
        prompts=str(path),
        held_out=str(tmp_path / "held_out.jsonl"),
        evaluate={"n_prompts": 1, "crisis_prompts": 0},
    )
    lessons = material.demonstrations(recipe, risk_of, harmless)
    assert [row.prompt for row in lessons.rows] == [asked(place) for place in WORK[3:]]
    assert lessons.figures["repeat_held_out"] == 3
    prompts = material.training_prompts(recipe, risk_of)
    assert len(prompts) == 5
    assert len(material.held_out_prompts(recipe, risk_of)) == 1
    # So a proof that asks for more later still finds nothing that was trained on.
    later = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"n_prompts": 9})}
    )
    proof = material.held_out_prompts(later, risk_of)
    assert len(proof) == 3
    check_disjoint(lessons.rows, proof)
    check_disjoint(prompts, proof)
    with pytest.raises(CheckFailed):
        check_disjoint(lessons.rows + lessons.rows[:1], material.training_prompts(recipe, risk_of))


def test_the_split_of_one_file_keeps_training_and_proof_apart(tmp_path):
    path = written(tmp_path / "d.jsonl", {place: f"The {place} can wait. {KIND}" for place in WORK})
    recipe = Recipe(run="t", demonstrations=str(path), prompts=str(path), held_out_share=0.3)
    lessons = material.demonstrations(recipe, risk_of, harmless)
    proof = material.held_out_prompts(recipe, risk_of)
    assert len(lessons.rows) + len(proof) == len(WORK)
    check_disjoint(lessons.rows, proof)
    assert material.files(recipe) == {"prompts": path, "demonstrations": path}


def test_the_clinics_training_prompts_are_new_people_each_round():
    recipe = Recipe(run="t", rounds=2, generate={"n_prompts": 30})
    first = material.training_prompts(recipe, risk_of)
    second = material.training_prompts(recipe.model_copy(update={"round": 2}), risk_of)
    assert len(first) == len(second) == 30
    assert not {p.id for p in first} & {p.id for p in second}
    assert {p.risk for p in first} == {"none", "elevated", "crisis"}


def test_a_file_of_held_out_prompts_is_cleaned_like_the_training_prompts(tmp_path):
    rows = [{"messages": asked(place)} for place in WORK[:3]]
    again = {"messages": [{"role": "user", "content": f"  {ASKED['office'].upper()}\r\n"}]}
    write_rows(tmp_path / "some.jsonl", [*rows, again])
    write_rows(tmp_path / "other.jsonl", [{"messages": asked("theatre")}])
    some, other = str(tmp_path / "some.jsonl"), str(tmp_path / "other.jsonl")
    held_out = material.held_out_prompts(Recipe(run="t", prompts=other, held_out=some), risk_of)
    trained = material.training_prompts(Recipe(run="t", prompts=some, held_out=other), risk_of)
    assert {p.id for p in held_out} == {p.id for p in trained}
    assert len(held_out) == len(trained) == 3
    blank = [*rows, {"messages": [{"role": "user", "content": " \n"}]}]
    write_rows(tmp_path / "blank.jsonl", blank)
    recipe = Recipe(run="t", prompts=other, held_out=str(tmp_path / "blank.jsonl"))
    with pytest.raises(UserError, match=r"blank\.jsonl:4: .*is blank"):
        material.held_out_prompts(recipe, risk_of)


def test_rows_that_a_held_out_file_gives_to_training_are_not_held_out(tmp_path):
    rows = [{"messages": asked(place)} for place in WORK[:2]]
    rows += [{"messages": asked("garden"), "split": "train"}]
    rows += [{"messages": [{"role": "user", "content": ASKED["garden"] + " Sadly."}]}]
    path = tmp_path / "held_out.jsonl"
    write_rows(path, rows)
    recipe = Recipe(run="t", held_out=str(path))
    assert {p.messages[0]["content"] for p in material.held_out_prompts(recipe, risk_of)} == {
        ASKED["office"],
        ASKED["kitchen"],
    }
    write_rows(path, rows[2:3])
    with pytest.raises(UserError, match="every row says split 'train'"):
        material.held_out_prompts(recipe, risk_of)


def test_a_recipe_is_chosen_on_other_people_than_the_reported_ones():
    reported = Recipe(run="t", evaluate={"n_prompts": 40, "crisis_prompts": 10})
    other_seed = reported.model_copy(update={"seed": 9})
    ids = [{p.id for p in material.held_out_prompts(r, risk_of)} for r in (reported, other_seed)]
    assert ids[0] == ids[1]
    others = reported.evaluate.model_copy(update={"people": 7})
    chosen_on = material.held_out_prompts(reported.model_copy(update={"evaluate": others}), risk_of)
    assert len(chosen_on) == 40
    assert ids[0].isdisjoint(prompt.id for prompt in chosen_on)


def test_the_clinics_people_in_a_held_out_file_are_not_trained_on(tmp_path):
    recipe = Recipe(run="t", generate={"n_prompts": 30}, finetune={"n_demonstrations": 40})
    prompts = material.training_prompts(recipe, risk_of)
    lessons = material.demonstrations(recipe, risk_of, harmless).rows
    said = [prompts[0].messages, prompts[7].messages, lessons[0].prompt]
    path = tmp_path / "held_out.jsonl"
    write_rows(path, [{"messages": messages} for messages in said])
    apart = recipe.model_copy(update={"held_out": str(path)})
    proof = material.held_out_prompts(apart, risk_of)
    assert len(proof) == 3
    left = material.training_prompts(apart, risk_of)
    check_disjoint(left, proof)
    assert 20 <= len(left) <= 28
    learned = material.demonstrations(apart, risk_of, harmless)
    check_disjoint(learned.rows, proof)
    assert learned.figures["repeat_held_out"] >= 1


@pytest.mark.skipif(
    not (Path(__file__).resolve().parents[2] / "shared" / "data" / "counsel_chat").is_dir(),
    reason="the real answers are not on this machine",
)
def test_real_answers_are_thinned_out_and_not_emptied():
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "counsel_chat"
    recipe = Recipe(run="t", demonstrations=str(folder / "answers.jsonl"))
    lessons = material.demonstrations(recipe, risk_of, why_unsafe)
    read = lessons.figures["read"]
    assert read > 400
    assert 0.35 * read < lessons.figures["kept"] < 0.95 * read


def test_no_round_of_another_seed_asks_the_same_people():
    seeds = [
        Recipe(run="x", seed=seed, rounds=4, round=round).round_seed
        for seed in range(3)
        for round in range(1, 5)
    ]
    assert len(set(seeds)) == 12


def test_looks_ask_held_out_people_whom_neither_proof_nor_training_asks() -> None:
    recipe = Recipe.model_validate(
        {"run": "r", "evaluate": {"n_prompts": 200, "crisis_prompts": 60, "max_new_tokens": 64}}
    )
    looks = material.look_prompts(recipe, risk_of, 120)
    proof = material.held_out_prompts(recipe, risk_of)
    assert 100 < len(looks) <= 120
    assert not list(overlapping(looks, proof))
    assert not list(overlapping(material.training_prompts(recipe, risk_of, 300), looks))
    assert sum(p.risk == "crisis" for p in looks) == pytest.approx(36, abs=3)


def test_looks_of_a_file_are_what_the_proof_leaves(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    write_rows(path, [{"messages": asked(place)} for place in ASKED])
    about = {"run": "r", "held_out": str(path)}
    recipe = Recipe.model_validate(about | {"evaluate": {"n_prompts": 5, "crisis_prompts": 0}})
    proof = {p.id for p in material.held_out_prompts(recipe, risk_of)}
    looks = {p.id for p in material.look_prompts(recipe, risk_of, 10)}
    assert len(proof) == 5 and looks and not looks & proof
    every = Recipe.model_validate(about | {"evaluate": {"n_prompts": 50, "crisis_prompts": 0}})
    with pytest.raises(UserError, match=r"leaves none.*lower evaluate\.n_prompts"):
        material.look_prompts(every, risk_of, 10)
