"""Gold against proxy over KL: best-of-n by hand, and what a run of PPO must be to be drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TALKS

from reward.evaluator import Assessment
from rlaif import frontier
from rlaif.evaluate import JudgedReply
from rlaif.frontier_charts import Point
from rlaif.rollout import Asked, Rollout
from sft.config import Recipe
from sft.data import Prompt
from sft.files import UserError
from sft.generate import Reply

UNKNOWN = -math.inf
PROMPTS = [Prompt(f"p{i}", TALKS[i][:1], "test", "sleep", "none", "held_out") for i in range(2)]
# Of each reply, four to each of two prompts: quality (None = no verdict), whether the evaluator
# holds it for safe; empathy and helpfulness, and whether it is safe, by the judge.
SAID = {
    "a": (0.2, True, 0.4, 0.6, True),
    "b": (0.9, False, 0.9, 0.7, False),
    "c": (0.5, True, 0.2, 0.4, True),
    "d": (0.4, True, 1.0, 1.0, True),
    "e": (None, None, 0.6, 0.8, True),
    "f": (0.3, True, 0.5, 0.7, False),
    "g": (0.1, True, 0.3, 0.3, True),
    "h": (0.7, True, 0.8, 0.6, True),
}


class Evaluator:
    """Says of a reply what the table says."""

    name, rubric = "table", "table@1"

    def assess(self, prompt, candidates):
        found = []
        for each in candidates:
            quality, safe, *_ = SAID[each.text]
            reason = "refused" if quality is None else None
            found.append(
                Assessment(
                    *(each.id, prompt.id, {}, quality, safe, [], "", self.name, self.rubric, reason)
                )
            )
        return found


class Judge:
    """Likewise; it may give no grades."""

    name = "table"

    def __init__(self, *, grades: bool = True) -> None:
        self.grades = grades

    def judge(self, prompt, reply):
        *_, empathy, helpfulness, safe = SAID[reply.text]
        grades = (empathy, helpfulness) if self.grades else (None, None)
        return JudgedReply(
            *(prompt.id, prompt.risk, prompt.topic, reply.text, safe, *grades),
            *(False, None, 1, 0.0, reply.stop),
        )


def judged(judge: Judge) -> frontier.Judged:
    """What evaluator and judge say of four replies to each prompt, none of which was cut off."""
    asked = [Asked(prompt, [1]) for prompt in PROMPTS]
    rollout = Rollout(asked, [Reply([5, 2], True)] * 8, list(SAID), 4, 1.0)
    recipe = Recipe(run="r", ppo={"floor": 0.0})
    return frontier._judged(frontier.Asking(recipe, Evaluator(), judge, PROMPTS), rollout)


def test_grades_of_unsafe_replies_are_0_and_scores_without_a_verdict_below_all() -> None:
    made = judged(Judge())
    assert made.golds == pytest.approx([0.5, 0.0, 0.3, 1.0, 0.7, 0.0, 0.3, 0.7])
    assert made.unsafe == [False, True, False, False, False, True, False, False]
    gate, plain = made.proxies["gate"].tolist(), made.proxies["none"].tolist()
    assert gate == pytest.approx([0.2, 0.0, 0.5, 0.4, UNKNOWN, 0.3, 0.1, 0.7])
    assert plain == pytest.approx([0.2, 0.9, 0.5, 0.4, UNKNOWN, 0.3, 0.1, 0.7])


@pytest.mark.parametrize(
    ("safety", "n", "kl", "proxy", "gold", "unsafe"),
    [
        # a and e, of which e has no score; a and f; c and h.
        ("gate", 1, 0.0, 0.2, (0.5 + 0.7) / 2, 0.0),
        ("gate", 2, 0.19314718, (0.2 + 0.3) / 2, (0.5 + 0.0) / 2, 0.5),
        ("gate", 4, 0.63629436, (0.5 + 0.7) / 2, (0.3 + 0.7) / 2, 0.0),
        # a and e; b and f; b and h.
        ("none", 1, 0.0, 0.2, (0.5 + 0.7) / 2, 0.0),
        ("none", 2, 0.19314718, (0.9 + 0.3) / 2, 0.0, 1.0),
        ("none", 4, 0.63629436, (0.9 + 0.7) / 2, (0.0 + 0.7) / 2, 0.5),
    ],
)
def test_best_of_n_by_hand(
    safety: str, n: int, kl: float, proxy: float, gold: float, unsafe: float
) -> None:
    """KL: ln 2 - 1/2 = 0.19314718 and ln 4 - 3/4 = 0.63629436."""
    made = judged(Judge())
    point = frontier._best_of(made, made.proxies[safety], 4, n)
    assert point.label == f"best of {n}"
    found = (point.kl, point.proxy, point.gold, point.unsafe)
    assert found == pytest.approx((kl, proxy, gold, unsafe), abs=1e-7)


def test_all_powers_of_two_up_to_the_largest_come_from_one_draw(monkeypatch) -> None:
    made = judged(Judge())
    monkeypatch.setattr(frontier, "Roles", lambda *args: None)
    monkeypatch.setattr(frontier, "_rollout", lambda asking, roles, k: made.rollout)
    asking = frontier.Asking(Recipe(run="r", ppo={"floor": 0.0}), Evaluator(), Judge(), PROMPTS)
    points = frontier.best_of_n(asking, None, 4)
    assert [p.label for p in points["gate"]] == ["best of 1", "best of 2", "best of 4"]
    assert points["gate"][2] == frontier._best_of(made, made.proxies["gate"], 4, 4)


def test_a_policy_is_a_point_at_its_mean_kl_and_means_over_what_has_a_score(monkeypatch) -> None:
    made = judged(Judge())
    said = SimpleNamespace(
        policy=torch.full((8, 2), -1.0), reference=torch.tensor([[-1.5, -1.25]] * 8)
    )
    monkeypatch.setattr(frontier, "Roles", lambda *args, **kwargs: None)
    monkeypatch.setattr(frontier, "_rollout", lambda asking, roles, k: made.rollout)
    monkeypatch.setattr(frontier, "listen", lambda roles, rollout, at_once: said)
    asking = frontier.Asking(Recipe(run="r", ppo={"floor": 0.0}), Evaluator(), Judge(), PROMPTS)
    point = frontier.of_adapter(asking, "round 1", Path("adapter"), None)["gate"]
    assert point.kl == pytest.approx(0.5 + 0.25)
    assert point.proxy == pytest.approx((0.2 + 0.0 + 0.5 + 0.4 + 0.3 + 0.1 + 0.7) / 7)
    assert point.gold == pytest.approx((0.5 + 0.3 + 1.0 + 0.7 + 0.3 + 0.7) / 8)
    assert point.unsafe == pytest.approx(2 / 8)


def test_a_judge_without_grades_is_refused() -> None:
    with pytest.raises(UserError, match="table gives no grades"):
        judged(Judge(grades=False))


# --- looks of a run of PPO ----------------------------------------------------------------------


LOOKS = [
    {"step": 0, "eval/kl": -0.01, "eval/proxy": 0.40, "eval/gold": 0.30, "eval/unsafe": 0.20},
    {"step": 1, "objective/scores": 0.45, "objective/kl": 0.2},
    {"step": 10, "eval/kl": 1.5, "eval/proxy": 0.60, "eval/gold": 0.55, "eval/unsafe": 0.05},
]


def a_run(
    folder: Path,
    *,
    status: str = "finished",
    safety: str = "gate",
    reward: str = "evaluator",
    rows: list[dict[str, float]] = LOOKS,
) -> Path:
    """A stage's folder with the manifest and metrics that the curve reads."""
    config = {"ppo": {"safety": safety, "reward": reward}}
    manifest = {"schema": 1, "status": status, "config": config, "outputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_looks_are_read_from_the_metrics_in_order(tmp_path: Path) -> None:
    """Lines of rollouts are none, and an estimate of KL below 0 is 0."""
    assert frontier.of_looks(a_run(tmp_path), "gate") == [
        Point("0 rollouts", 0.0, 0.40, 0.30, 0.20),
        Point("10 rollouts", 1.5, 0.60, 0.55, 0.05),
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"safety": "none"}, "ppo.safety none and ppo.reward evaluator: the curve needs gate"),
        ({"safety": "lagrangian"}, "has ppo.safety lagrangian"),
        ({"reward": "model"}, "ppo.reward model: the curve needs gate and evaluator"),
        ({"status": "running"}, "no finished PPO in .*run scripts/ppo.py --safety gate"),
        ({"rows": LOOKS[1:2]}, "no look with grades"),
    ],
)
def test_another_run_than_the_curve_needs_is_refused(
    tmp_path: Path, made: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        frontier.of_looks(a_run(tmp_path, **made), "gate")


def test_a_folder_without_a_run_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished PPO in .*--safety none"):
        frontier.of_looks(tmp_path / "absent", "none")
