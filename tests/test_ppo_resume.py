"""PPO that is stopped anywhere, damaged, or out of room goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from test_ppo import LettersEvaluator, adapter, course, logged
from test_resume import same
from test_reward_model import reward_model

from rlaif import ppo, ppo_state, ppo_update
from rlaif.ppo_update import Learner
from sft import checkpoints
from sft.candidates import Sampling
from sft.files import CheckFailed, EvaluatorStopped, ResultExists, StorageError
from sft.training_state import load_state

Begin = Callable[..., ppo.Ppo]
SCALE = 2.0**100  # of a loss that is scaled; float32 has room for 2 ** 127

LAGRANGIAN = {"safety": "lagrangian", "multiplier_rate": 0.5}
ADAPTIVE = {"kl_target": 0.05, "kl_horizon": 20.0}
CASES: dict[str, dict[str, Any]] = {
    "a head": {},
    "an adapter": {"value": "adapter"},
    "lagrangian": LAGRANGIAN,
    "lagrangian, adaptive KL": LAGRANGIAN | ADAPTIVE,
    "adaptive KL": ADAPTIVE,
    "reward model": {"reward": "model"},
    "loss scaling": {},
    "all, loss scaling": {"value": "adapter", "reward": "model", **LAGRANGIAN, **ADAPTIVE},
}
ALONE = ("a head", "lagrangian", "adaptive KL", "reward model", "loss scaling")


@pytest.fixture(scope="module")
def adapters(model_folders, tmp_path_factory) -> dict[str, Path]:
    """Where the policy starts, and a reward model."""
    home = tmp_path_factory.mktemp("adapters")
    base = model_folders["llama"]
    reward_model(base).save(home / "reward", str(base))
    return {"start": adapter(base, home / "start", seed=1), "reward": home / "reward"}


@pytest.fixture
def begin(model_folders, adapters, monkeypatch) -> Begin:
    """Begins a run of a case in a folder, as a new process would."""

    def made(case: str, home: Path, **more: Any) -> ppo.Ppo:
        settings = CASES[case] | more
        reward = adapters["reward"] if settings.get("reward") == "model" else None
        run = course(model_folders["llama"], adapters["start"], home, reward, **settings)
        if "scaling" in case:
            scale_losses(run.learner)
        torch.rand(7)  # the random numbers of another process are elsewhere
        return run

    return made


def scale_losses(learner: Learner) -> None:
    """fp16's scaler on a CPU in float32; the first update overflows, later ones raise the scale."""
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    plain = learner._backward

    def backward(loss: torch.Tensor) -> None:
        plain(loss * 2.0**60 if learner.scheduler.last_epoch == 0 else loss)

    learner._backward = backward  # type: ignore[method-assign]


def state_of(run: ppo.Ppo) -> dict[str, Any]:
    """Everything that a checkpoint holds, without what a clock says."""
    state = ppo_state.pack(run)
    state["figures"] = {k: v for k, v in state["figures"].items() if not k.startswith("time/")}
    del state["metrics"], state["seconds"]
    return state


def check_same(one: ppo.Ppo, two: ppo.Ppo) -> None:
    wanted, found = state_of(one), state_of(two)
    assert [name for name in wanted if not same(wanted[name], found[name])] == []
    assert logged(one) == logged(two)


def check_moved(case: str, run: ppo.Ppo) -> None:
    """What a case is about is not where it began, so that a stop could lose it."""
    course, section = run.course, run.section
    assert course.multiplier.value > 0 or "safety" not in CASES[case]
    assert (course.kl.coef != section.kl_coef) == ("kl_target" in CASES[case])
    if "scaling" in case:
        assert run.learner.scaler.get_scale() == SCALE * 0.5 * 2**3


class Stops:
    """Asks a run to stop once at each of its boundaries, in whichever start it comes there first.

    Attributes:
        been: boundaries at which a start was stopped: where the run was, what it drew, how often.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.been: list[tuple[Any, ...]] = []
        self.purpose = "between"
        self.times: Counter[tuple[Any, ...]] = Counter()
        boundary, draw = ppo.Ppo.boundary, ppo.Ppo._sample

        def stopping(run: ppo.Ppo) -> None:
            course = run.course
            began = course.lesson is not None
            place = (course.iteration, len(course.looks), began, course.update, self.purpose)
            self.times[place] += 1
            label = (*place, self.times[place])
            if label not in self.been:
                self.been.append(label)
                run.stop.number = signal.SIGTERM
            boundary(run)

        def sampling(run: ppo.Ppo, asked: Any, how: Sampling) -> Any:
            self.purpose = "look" if asked is run.held_out else "rollout"
            made = draw(run, asked, how)
            self.purpose = "between"
            return made

        monkeypatch.setattr(ppo.Ppo, "boundary", stopping)
        monkeypatch.setattr(ppo.Ppo, "_sample", sampling)

    def start(self) -> None:
        """The next process counts anew."""
        self.purpose = "between"
        self.times.clear()


@pytest.mark.parametrize(
    "case",
    [
        "lagrangian, adaptive KL",
        "an adapter",
        "all, loss scaling",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ALONE),
    ],
)
def test_stopped_at_every_boundary_it_ends_as_if_never_stopped(
    case, begin, tmp_path, monkeypatch, capsys
):
    """While sampling, between any two updates, between rollouts, before and after each look."""
    whole = begin(case, tmp_path / "whole")
    whole.run()
    check_moved(case, whole)
    stops = Stops(monkeypatch)
    codes = []
    while len(codes) < 100:
        stops.start()
        again = begin(case, tmp_path / "cut")
        ppo_state.resume(again)
        try:
            again.run()
            break
        except SystemExit as ended:
            codes.append(ended.code)
    assert codes == [143] * 16
    assert len(stops.been) == 16
    assert {purpose for *_, purpose, _ in stops.been} == {"look", "rollout", "between"}
    assert capsys.readouterr().out.count("resumed: ") == 16
    check_same(whole, again)
    assert sorted(path.name for path in (tmp_path / "cut" / "stage").iterdir()) == sorted(
        [checkpoints.FOLDER, "metrics.jsonl", "rollouts.jsonl"]
    )


@pytest.mark.slow
def test_each_boundary_by_itself(begin, tmp_path, monkeypatch):
    """As above, but each stop in a run of its own, which then goes on to its end."""
    case = "all, loss scaling"
    whole = begin(case, tmp_path / "whole")
    whole.run()
    stops = Stops(monkeypatch)
    for number in range(100):
        home = tmp_path / str(number)
        stops.start()
        try:
            begin(case, home).run()
            break
        except SystemExit:
            with monkeypatch.context() as patch:
                patch.setattr(stops, "been", _Everything())
                again = begin(case, home)
                ppo_state.resume(again)
                again.run()
        check_same(whole, again)
    assert number == 16


class _Everything(list[Any]):
    def __contains__(self, _: object) -> bool:
        return True


@pytest.mark.parametrize("last", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_between_two_lines_of_a_look_or_a_rollout(begin, tmp_path, last):
    """It does not wait: what was half done is done again, and nothing twice. In one run, before
    each of the last lines, which change the run, or before all."""
    case = "lagrangian"
    whole = begin(case, tmp_path / "whole")
    passed, chosen = interrupted(whole, None), []
    for name in ("_look", "_roll_out"):
        of_second = [line for line in passed if line[:2] == (name, 1)]
        assert len(of_second) > 15
        chosen += of_second[-(last or 0) :]
    for line in chosen:
        run = begin(case, tmp_path / "cut")
        ppo_state.resume(run)
        with pytest.raises(KeyboardInterrupt):
            interrupted(run, line)
    again = begin(case, tmp_path / "cut")
    ppo_state.resume(again)
    again.run()
    check_same(whole, again)


Line = tuple[str, int, int]


def interrupted(run: ppo.Ppo, at: Line | None) -> list[Line]:
    """Run, with Ctrl-C before a line of a look or a rollout.

    Args:
        run: to its end, or to that line.
        at: function, rollouts done, and line; None = nowhere.

    Returns:
        The lines that were passed.
    """
    passed: dict[Line, None] = {}
    codes = {ppo.Ppo._look.__code__, ppo.Ppo._roll_out.__code__}

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            line = (frame.f_code.co_name, run.course.iteration, frame.f_lineno)
            passed[line] = None
            if line == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: local if frame.f_code in codes else None)
    try:
        run.run()
    finally:
        sys.settrace(before)
    return list(passed)


def test_a_signal_amid_the_last_look_ends_the_run_after_it(begin, tmp_path, monkeypatch):
    whole = begin("a head", tmp_path / "whole", iterations=1)
    whole.run()
    judge = ppo.Ppo._judge

    def signalled(run: ppo.Ppo, rollout: Any, said: Any, policy: str) -> Any:
        if policy == "look-1":
            run.stop.number = signal.SIGTERM
        return judge(run, rollout, said, policy)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ppo.Ppo, "_judge", signalled)
        begin("a head", tmp_path / "cut", iterations=1).run()
    again = begin("a head", tmp_path / "cut", iterations=1)
    ppo_state.resume(again)
    assert len(again.course.looks) == 2
    again.run()
    check_same(whole, again)


def test_an_evaluator_that_stops_the_run_costs_no_update(begin, tmp_path, monkeypatch):
    """Though nothing is saved from time to time."""
    whole, passed = begin("lagrangian", tmp_path / "whole"), []
    whole.run()
    plain = LettersEvaluator.assess
    for calls in (5, 12):  # of the first rollout; of the second after what is kept of the first
        left = iter(range(calls))

        def assess(self: Any, prompt: Any, candidates: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise EvaluatorStopped("the quota is used up")
            return plain(self, prompt, candidates)

        run = begin("lagrangian", tmp_path / "cut", save_every=0)
        ppo_state.resume(run)
        with monkeypatch.context() as patch, pytest.raises(EvaluatorStopped):
            patch.setattr(LettersEvaluator, "assess", assess)
            run.run()
        passed.append((run.course.iteration, len(run.course.looks)))
    assert passed[0] < passed[1] < (2, 3)
    again = begin("lagrangian", tmp_path / "cut")
    ppo_state.resume(again)
    again.run()
    check_same(whole, again)


# --- damage ------------------------------------------------------------------------------------


def stopped(run: ppo.Ppo, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Let a run be stopped once it has done so many updates."""
    boundary = ppo.Ppo.boundary

    def stopping(run: ppo.Ppo) -> None:
        if run.learner.scheduler.last_epoch == updates:
            run.stop.number = signal.SIGTERM
        boundary(run)

    ppo_state.resume(run)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ppo.Ppo, "boundary", stopping)
        run.run()


def test_20_damaged_checkpoints_are_passed_over_for_the_one_before(
    begin, tmp_path, monkeypatch, capsys
):
    case = "all, loss scaling"
    whole = begin(case, tmp_path / "whole")
    whole.run()
    run = begin(case, tmp_path / "cut", save_every=1)
    stopped(run, monkeypatch, 6)
    folder, kept = tmp_path / "cut" / "stage" / checkpoints.FOLDER, tmp_path / "kept"
    shutil.move(folder, kept)
    older, newer = sorted(path.name for path in kept.iterdir())
    files = sorted(path.name for path in (kept / newer).iterdir())
    assert files == ["manifest.json", "metrics.jsonl", ppo_state.ROLLOUTS, ppo_state.STATE]
    wanted = {name: load_state(kept / name / ppo_state.STATE) for name in (older, newer)}
    assert (wanted[older]["update"], wanted[newer]["update"]) == (0, 2)
    rng, passed, again = random.Random(7), 0, begin(case, tmp_path / "cut")
    for number in range(20):
        name = files[number // 2 % len(files)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        held = bytearray((folder / newer / name).read_bytes())
        whole_text = bytes(held)
        if number % 2:
            held = held[: rng.randrange(len(held))]
        else:
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
        (folder / newer / name).write_bytes(held)
        with torch.no_grad():
            for value in again.learner.parameters.values():
                value.fill_(float("nan"))
        ppo_state.resume(again)
        said, found = capsys.readouterr().out, ppo_state.pack(again)
        if f"passed over: {newer}: " in said:
            passed += 1
            about = "its manifest" if name == "manifest.json" else name
            assert f"passed over: {newer}: {about}" in said
            assert f"resumed: {folder / older}, " in said
        else:  # a bit in the manifest's white space
            assert json.loads(held) == json.loads(whole_text)
        used = wanted[older if "passed over" in said else newer]
        assert [
            name for name in used if name != "seconds" and not same(used[name], found[name])
        ] == []
    assert passed >= 18
    (folder / newer / ppo_state.STATE).write_bytes(b"")
    again = begin(case, tmp_path / "cut")
    ppo_state.resume(again)
    again.run()
    check_same(whole, again)


def test_where_all_checkpoints_are_damaged_it_starts_again_and_says_so(
    begin, tmp_path, monkeypatch, capsys
):
    whole = begin("a head", tmp_path / "whole", iterations=1)
    whole.run()
    run = begin("a head", tmp_path / "cut", iterations=1)
    stopped(run, monkeypatch, 2)
    (folder,) = (tmp_path / "cut" / "stage" / checkpoints.FOLDER).iterdir()
    (folder / ppo_state.STATE).unlink()
    for name in ("metrics.jsonl", "rollouts.jsonl"):  # as the opening of the stage does
        (tmp_path / "cut" / "stage" / name).unlink()
    capsys.readouterr()
    again = begin("a head", tmp_path / "cut", iterations=1)
    ppo_state.resume(again)
    said = capsys.readouterr().out
    assert "no checkpoint to resume" in said
    assert f"passed over: {folder.name}: {ppo_state.STATE} is missing" in said
    again.run()
    check_same(whole, again)


# --- no number, no room, other settings --------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_number_stops_before_the_update_and_it_goes_on_once_that_is_mended(
    begin, tmp_path, monkeypatch, where, value
):
    case, home = "lagrangian", tmp_path / "cut"
    run = begin(case, home, save_every=1)
    plain, loss = Learner.update, ppo_update.policy_loss
    at: dict[str, Any] = {}

    def update(self: Learner, rollout: Any, lesson: Any, prompts: list[int]) -> dict[str, float]:
        if run.course.iteration == 1 and run.course.update == 1:
            at["names"] = [rollout.asked[i].prompt.id for i in prompts]
            at["state"] = state_of(run)
        return plain(self, rollout, lesson, prompts)

    def policy_loss(*arguments: Any) -> Any:
        made = loss(*arguments)
        if not at:
            return made
        if where == "loss":
            return made._replace(loss=made.loss * value)
        arguments[0].register_hook(lambda gradient: gradient * value)
        return made

    with monkeypatch.context() as patch, pytest.raises(CheckFailed) as told:
        patch.setattr(Learner, "update", update)
        patch.setattr(ppo_update, "policy_loss", policy_loss)
        run.run()
    assert f"before the update of prompts {', '.join(at['names'])}. " in str(told.value)
    now = state_of(run)
    assert [name for name in now if not same(now[name], at["state"][name])] == []
    assert list(checkpoints.steps(home / "stage" / checkpoints.FOLDER)) == [7]
    if (where, value) == ("gradient", float("inf")):
        whole, again = begin(case, tmp_path / "whole"), begin(case, home)
        whole.run()
        ppo_state.resume(again)
        again.run()
        check_same(whole, again)


@pytest.mark.parametrize("how", ["from time to time", "after a signal"])
def test_a_full_disk_keeps_the_checkpoint_before(begin, tmp_path, monkeypatch, how):
    case, home = "lagrangian", tmp_path / "cut"
    folder, sync, show = home / "stage" / checkpoints.FOLDER, os.fsync, ppo_state.show

    def full() -> bool:
        return bool(list(folder.glob("step-*")))

    def fsync(descriptor: int) -> None:
        if full():
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as ended:
        patch.setattr(os, "fsync", fsync)
        # Else metrics are the first that find no room.
        patch.setattr(ppo_state, "show", lambda *each: full() or show(*each))
        run = begin(case, home, save_every=1)
        if how == "after a signal":
            stopped(run, monkeypatch, 6)
        else:
            run.run()
    assert ended.value.exit_code == 6
    assert os.listdir(folder) == ["step-00000007"]
    whole, again = begin(case, tmp_path / "whole"), begin(case, home)
    whole.run()
    ppo_state.resume(again)
    again.run()
    check_same(whole, again)


def test_other_settings_or_prompts_are_refused_by_name(begin, tmp_path, monkeypatch):
    run = begin("a head", tmp_path, save_every=1)
    stopped(run, monkeypatch, 2)
    saved = (
        tmp_path / "stage" / checkpoints.FOLDER / "step-00000004" / ppo_state.STATE
    ).read_bytes()
    for name, value in (
        ("learning_rate", 0.02),
        ("kl_coef", 0.1),
        ("safety", "none"),
        ("lam", 0.5),
    ):
        with pytest.raises(ResultExists, match=rf"ppo\.{name}: \S+ there, {value} now") as told:
            ppo_state.resume(begin("a head", tmp_path, **{name: value}))
        assert "--resume never" in str(told.value)
        assert str(told.value).count(" there, ") == 1
    for name in ("asked", "held_out"):
        other = begin("a head", tmp_path)
        setattr(other, name, getattr(other, name)[:-1])
        with pytest.raises(ResultExists, match=r"prompts: \w+ there, \w+ now"):
            ppo_state.resume(other)
    again = begin("a head", tmp_path, save_every=50)  # how often to save is no other result
    ppo_state.resume(again)
    assert again.course.update == 2
    now = tmp_path / "stage" / checkpoints.FOLDER / "step-00000004" / ppo_state.STATE
    assert now.read_bytes() == saved
