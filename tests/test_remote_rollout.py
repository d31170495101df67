"""Rollouts from a scripted vLLM server over a real socket: adapters, tokens, what is left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_online import HELD_OUT, PROMPTS, ByHash, recipe_for, start  # noqa: F401  # a fixture

from reward.rehearsal import Call, Reply, running
from rlaif import ppo
from rlaif.evaluate import EvaluatorJudge
from rlaif.ppo_course import Job
from rlaif.remote_rollout import DRAWS, Served, without_personal_data
from rlaif.roles import Roles
from rlaif.rollout import fitting
from sft import model as models
from sft.candidates import Sampling
from sft.data import Prompt
from sft.files import CheckFailed, UserError
from sft.stopping import StopRequest

STOP = 4  # <|eot_id|> of the tests' tokenizer, as the first test sees


class Vllm:
    """Loads adapters as vLLM does, and answers with tokens drawn from the request's seed."""

    def __init__(self) -> None:
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self.events: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.choice: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice

    def __call__(self, call: Call) -> Reply:
        body = call.body
        if call.path == "/v1/load_lora_adapter":
            name = body["lora_name"]
            if name in self.adapters:
                text = f"The lora adapter '{name}' has already been loaded."
                return Reply(400, {"error": {"message": text, "type": "InvalidUserInput"}})
            self.adapters[name] = models.adapter_weights(Path(body["lora_path"]))
            self.events.append("load")
            return Reply(
                body=b"Success: LoRA adapter added.", headers={"content-type": "text/plain"}
            )
        if call.path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            self.events.append("unload")
            return Reply(body=b"Success.", headers={"content-type": "text/plain"})
        assert call.path == "/v1/completions"
        assert body["model"] in self.adapters
        self.bodies.append(body)
        drawn = random.Random(body["seed"])
        choices = []
        for index in range(body["n"]):
            ids = [drawn.randrange(50, 100) for _ in range(drawn.randrange(1, body["max_tokens"]))]
            ended = drawn.random() < 0.7
            ids = [*ids, STOP] if ended else ids + [60] * (body["max_tokens"] - len(ids))
            choice = {"index": index, "text": "", "token_ids": ids, "stop_reason": None,
                      "finish_reason": "stop" if ended else "length"}  # fmt: skip
            choices.append(self.choice(choice))
        return Reply(body={"object": "text_completion", "choices": choices})


@pytest.fixture
def roles(model_folders, start, tmp_path):  # noqa: F811
    return Roles(recipe_for(model_folders["llama"], tmp_path, method="ppo"), start, None, 1.0)


def sampled(roles: Roles, server: Vllm, folder: Path, times: int = 1):
    asked = fitting(roles.chat, PROMPTS[:4], 6)
    with running(server) as url:
        served = Served(url, folder / "served", "base")
        for number in range(times):
            rollout = served.sample(roles, asked, Sampling(3, 0.7, 1.0, 6, 6, number))
        served.close()
    return rollout


def test_replies_are_the_servers_tokens_to_the_prompts_own(roles, tmp_path):
    assert roles.chat.stop_id == STOP
    server = Vllm()
    rollout = sampled(roles, server, tmp_path)
    assert len(rollout.replies) == 12 and rollout.left_out == 0
    bodies = {tuple(body["prompt"]): body for body in server.bodies}
    for i, each in enumerate(rollout.asked):
        body = bodies[tuple(each.ids)]
        assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (3, 0.7, 1, 6)
        assert set(body["stop_token_ids"]) == {STOP, roles.chat.tokenizer.eos_token_id}
        for reply, text in zip(
            rollout.replies[3 * i :][:3], rollout.texts[3 * i :][:3], strict=True
        ):
            assert reply.ended == (reply.ids[-1] == STOP)
            assert reply.ended or len(reply.ids) == 6
            assert text == roles.chat.text(reply.text_ids)
    assert len({body["seed"] for body in server.bodies}) == 4
    assert not server.adapters and not (tmp_path / "served").exists()


def test_the_server_speaks_with_the_adapter_of_the_day_and_lets_go_of_the_last(roles, tmp_path):
    server = Vllm()
    asked = fitting(roles.chat, PROMPTS[:2], 6)
    with running(server) as url:
        served = Served(url, tmp_path / "served", "base")
        for number in range(3):
            if number == 2:
                with torch.no_grad():
                    for value in roles.weights().values():
                        value += 0.1
            served.sample(roles, asked, Sampling(2, 1.0, 1.0, 6, 6, number))
            (loaded,) = server.adapters.values()
            own = {name.replace(".default", ""): v for name, v in roles.weights().items()}
            for name, value in loaded.items():
                assert torch.equal(value, own[name])
        assert server.events == ["load", "load", "unload"]  # unchanged weights are not sent again
        # Another process, after this one was killed: the adapter is there already.
        Served(url, tmp_path / "served", "base").sample(
            roles, asked, Sampling(2, 1.0, 1.0, 6, 6, 0)
        )
        assert server.events == ["load", "load", "unload"]


def text_alone(roles: Roles, spoil: int = 0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers without token ids; some of the first `spoil` have bytes that are no text."""
    left = [spoil]

    def choice(made: dict[str, Any]) -> dict[str, Any]:
        ids = made.pop("token_ids")
        made["text"] = roles.chat.tokenizer.decode([each for each in ids if each != STOP])
        if left[0]:
            made["text"] += "\ufffd"
            left[0] -= 1
        if made["finish_reason"] == "stop":
            made["stop_reason"] = STOP
        return made

    return choice


def test_without_token_ids_the_text_decides_or_another_reply_is_drawn(roles, tmp_path):
    server = Vllm()
    server.choice = text_alone(roles, spoil=5)
    rollout = sampled(roles, server, tmp_path)
    assert len(rollout.replies) == 12 and rollout.left_out == 5
    assert sum(body["n"] for body in server.bodies) == 17
    assert all("\ufffd" not in text for text in rollout.texts)
    for reply, text in zip(rollout.replies, rollout.texts, strict=True):
        assert roles.chat.tokenizer.decode(reply.text_ids).strip() == text
        assert reply.ended == (reply.ids[-1] == STOP)
    assert any(reply.ended for reply in rollout.replies)


def test_replies_that_stay_unknown_end_the_run(roles, tmp_path):
    server = Vllm()
    server.choice = text_alone(roles, spoil=1000)
    with pytest.raises(CheckFailed, match="return_token_ids"):
        sampled(roles, server, tmp_path)
    assert len(server.bodies) == DRAWS * 4


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({"token_ids": [60, 61], "finish_reason": "stop", "stop_reason": STOP}, [60, 61, STOP]),
        ({"token_ids": [60, STOP, 61], "finish_reason": "stop"}, [60, STOP]),
        ({"token_ids": [60, 61], "finish_reason": "stop", "stop_reason": "word"}, None),
        ({"token_ids": [60, 61], "finish_reason": "content_filter"}, None),
        ({"token_ids": [], "finish_reason": "length"}, None),
    ],
)
def test_a_reply_ends_where_the_server_says_so_or_is_not_known(roles, tmp_path, change, known):
    server = Vllm()
    server.choice = lambda choice: choice | change
    if known is None:
        with pytest.raises(CheckFailed, match="not known"):
            sampled(roles, server, tmp_path)
    else:
        assert all(
            reply.ids == known and reply.ended for reply in sampled(roles, server, tmp_path).replies
        )


def test_a_server_that_takes_no_adapters_is_told_how_to_start(roles, tmp_path):
    def plain(call: Call) -> Reply:
        return Reply(404, {"detail": "Not Found"})

    asked = fitting(roles.chat, PROMPTS[:1], 6)
    with running(plain) as url, pytest.raises(UserError, match="--enable-lora"):
        Served(url, tmp_path / "served", "b").sample(roles, asked, Sampling(1, 1.0, 1.0, 6, 6, 0))


def test_a_whole_course_with_a_server(model_folders, start, tmp_path):  # noqa: F811
    server = Vllm()
    stage = SimpleNamespace(is_main=True, said=[], logged=[], elapsed=lambda: 1.0, facts=dict)
    stage.path = lambda name: tmp_path / "stage" / name
    stage.say = stage.said.append
    stage.log = lambda row, step=None: stage.logged.append(dict(row))
    (tmp_path / "stage").mkdir()
    with running(server) as url:
        recipe = recipe_for(
            model_folders["llama"], tmp_path, method="ppo", rollout_url=url, save_every=0
        )
        job = Job(recipe, PROMPTS, HELD_OUT, ByHash(), EvaluatorJudge(ByHash()), stage)  # type: ignore[arg-type]
        run = ppo.Ppo(job, Roles(recipe, start, None, 1.0), StopRequest())
        run.run()
    assert run.course.iteration == 2
    # A look at the start and the first rollout share an adapter, as do each later look and rollout.
    assert server.events == ["load", *["load", "unload"] * 2, "unload"]
    lines = [row for row in stage.logged if "objective/kl" in row]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert lines[1]["objective/kl"] != pytest.approx(0, abs=1e-4)
    assert all(row["left_out"] == 0 for row in lines)


def test_a_server_elsewhere_is_named_and_gets_no_personal_data(model_folders, tmp_path):
    far = "https://gpu.example.org/v1"
    with pytest.raises(ValueError, match=r"say ppo\.allow_remote gpu\.example\.org"):
        recipe_for(model_folders["llama"], tmp_path, method="ppo", rollout_url=far)
    recipe_for(model_folders["llama"], tmp_path, method="ppo", rollout_url=far,
               allow_remote="gpu.example.org")  # fmt: skip
    with pytest.raises(ValueError, match=r"does not read ppo\.rollout_url"):
        recipe_for(model_folders["llama"], tmp_path, method="rloo",
                   rollout_url="http://localhost:8000/v1")  # fmt: skip
    said = [{"role": "user", "content": "My mail is anna.m@example.com and I cannot sleep."}]
    prompt = Prompt("p", said, "test", "sleep", "none", "train")
    assert without_personal_data("http://127.0.0.1:8000/v1", [prompt]) == [prompt]
    (hidden,) = without_personal_data(far, [prompt])
    assert "anna" not in hidden.messages[0]["content"] and "sleep" in hidden.messages[0]["content"]
