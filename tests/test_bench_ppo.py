"""The PPO benchmark: its rows and tables, what it refuses, and a tiny run of it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from rlaif.bench import ppo_ours, ppo_report
from rlaif.bench.ppo_bytes import llama3_8b
from rlaif.bench.ppo_process import install_trl
from rlaif.bench.ppo_turns import size_of
from rlaif.bench.ppo_work import FULL_VALUE, OPPONENT, PARTS, WHO, Course, Held, PpoJob
from rlaif.plan.memory import GIB
from rlaif.rollout import sample
from sft.candidates import Sampling
from sft.files import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "bench_ppo.py"
JOB = PpoJob("tiny", "nowhere", 4, 2, 8, 2, 2, 8, 2, "bfloat16")


def course(who: str, generate: list[float], update: list[float], model: int) -> Course:
    seconds = [
        {"generate": g, "score": 1.0, "update": u} for g, u in zip(generate, update, strict=True)
    ]
    return Course(who, seconds, Held(model - 100, 100, 50, 900))


def courses() -> list[Course]:
    return [
        course("head", [1, 1, 2], [2, 2, 4], 1000),
        course("adapter", [1, 1, 1], [3, 3, 3], 1250),
        course(OPPONENT, [2, 3, 5], [5, 6, 8], 2500),
        course(FULL_VALUE, [2, 2, 2], [3, 3, 3], 3000),
    ]


def test_rows_have_the_ratio_and_its_range() -> None:
    made = json.loads(json.dumps(ppo_report.to_json(courses())))
    rows = {(row["work"], row["against"]): row for row in made["rows"]}
    assert rows["iteration", OPPONENT] == {
        "work": "iteration", "against": OPPONENT, "ratio": 2.0, "low": 2.0, "high": 2.5,
    }  # fmt: skip
    update = rows["update", OPPONENT]
    assert (update["ratio"], update["low"], update["high"]) == (2.5, 2.0, 3.0)
    held = rows["weights-and-optimiser", OPPONENT]
    assert held["ratio"] == held["low"] == held["high"] == 2.5
    works = ("iteration", "update", "weights-and-optimiser")
    assert set(rows) == {(work, who) for work in works for who in (OPPONENT, FULL_VALUE)}
    assert made["value"] == "head"
    assert {(r["value"], r["work"]) for r in made["others"]} >= {
        ("head", "generate"), ("head", "score"), ("adapter", "iteration"),
    }  # fmt: skip


def test_a_ratio_is_of_iterations_and_not_of_means() -> None:
    # In the second iteration the machine was ten times as slow, for both.
    slow = [course("head", [1, 10], [1, 10], 9), course(OPPONENT, [2, 20], [2, 20], 9)]
    (update,) = (row for row in ppo_report.rows(slow) if row.work == "update")
    assert (update.ratio.low, update.ratio.high) == (2, 2)


def test_the_table_tells_met_from_missed() -> None:
    lines = ppo_report.table(courses()).splitlines()
    told = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    assert told["an iteration"].endswith("| 2: met |")
    assert told["weights and optimiser"].endswith("| 2.1: met |")
    assert told["of it, scoring"].endswith("|  |")
    worse = [replace(courses()[0], held=Held(1400, 100, 50, 900)), *courses()[1:]]
    assert "| 2.1: missed |" in ppo_report.table(worse)
    assert {line.count("|") for line in lines} == {7}
    amounts = ppo_report.amounts(courses()).splitlines()
    assert len(amounts) == 2 + len(WHO) and len({line.count("|") for line in amounts}) == 1
    assert amounts[2].startswith("| head | 4.00 (4.00 to 7.00) | 1.00 (1.00 to 2.00) |")


def test_the_plot_has_a_dot_for_each_ratio_of_a_target() -> None:
    drawing = ElementTree.fromstring(ppo_report.plot(courses()))
    dots = [each for each in drawing.iter() if each.tag.endswith("circle")]
    assert len(dots) == 4 * len(ppo_report.TARGETS)


def test_what_two_names_share_counts_once() -> None:
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert size_of([weight, weight, torch.zeros(2)]) == 3 * 4 * 2 + 2 * 4


def test_an_8b_model_in_4_bit_fits_with_its_roles() -> None:
    found = {each.who: each for each in llama3_8b()}
    copies = found["TRL 1.12.0, its three models alone"].total / GIB
    assert copies == pytest.approx(14.0, abs=0.05)
    assert found["value: head"].total / GIB < 6.7
    assert found["value: head, after a supervised start"].total / GIB < 6.7
    for each in found.values():
        # 41.94 M parameters of LoRA: rank 16 on all linear layers (facts of the shape).
        adapters = each.total - sum(size for name, size in each.parts.items() if "base" in name)
        assert adapters % (4 * 41_943_040) == 0
        assert str(each).endswith(f"= {each.total / GIB:.2f} GiB")


@pytest.mark.parametrize(
    ("change", "who", "reason"),
    [
        ({"prompts": 0}, WHO, "--prompts 0: give at least 1"),
        ({"mini_batches": 3}, WHO, "--mini_batches 3: has to divide --prompts"),
        ({"rows": 7}, WHO, "--rows 7: has to be a multiple of --k 2"),
        ({}, ("head", "trl"), "--who trl: give some of head,"),
        ({}, ("head", "adapter"), "name one of ours and one of TRL's"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_told_before_anything_starts(change, who, reason) -> None:
    JOB.check(WHO)
    with pytest.raises(UserError, match=reason):
        replace(JOB, **change).check(who)


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert PpoJob.read(JOB.write(tmp_path / "job.json")) == JOB


def test_no_reply_of_ours_ends_early(tmp_path: Path) -> None:
    job = replace(JOB, folder=str(tmp_path), dtype="float32")
    ppo_ours.prepare(job)
    roles = ppo_ours.roles_of(job, ppo_ours.recipe_of(job, "head"))
    sampling = Sampling(64, 1.0, 1.0, job.reply, 256, 0)
    rollout = sample(roles, ppo_ours.asked_of(job), sampling, lambda _: None)
    assert {len(reply.ids) for reply in rollout.replies} == {job.reply}


@pytest.mark.slow
def test_a_tiny_run_measures_everything(tmp_path: Path) -> None:
    try:
        trl = install_trl(ROOT / "runs" / "bench" / OPPONENT)
    except UserError as error:
        pytest.skip(str(error))
    flags = "--size tiny --prompts 4 --k 2 --rows 8 --reply 8 --mini_batches 2 --repeats 1"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags.split(), "--threads", "1", "--trl", str(trl)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "bench"
    made = json.loads((folder / "ppo.json").read_text(encoding="utf-8"))
    assert {row["against"] for row in made["rows"]} == {OPPONENT, FULL_VALUE}
    assert [each["who"] for each in made["contestants"]] == list(WHO)
    for each in made["contestants"]:
        (seconds,) = each["seconds"]  # the warm-up does not count
        assert list(seconds) == list(PARTS) and min(seconds.values()) > 0
        assert 0 < each["held"]["libraries"] < each["held"]["peak"]
    held = {each["who"]: each["held"] for each in made["contestants"]}
    n = held["adapter"]["weights"] - held["head"]["weights"]  # an adapter in float32
    assert held["head"]["optimizer"] == pytest.approx(2 * n, rel=0.01)  # Adam's two states of one
    assert held["adapter"]["optimizer"] == pytest.approx(4 * n, rel=0.01)
    assert held[OPPONENT]["optimizer"] == pytest.approx(4 * n, rel=0.01)
    assert (folder / "ppo.md").read_text(encoding="utf-8") in done.stdout
    ElementTree.parse(folder / "ppo.svg")
