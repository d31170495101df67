"""Candidates from a server: as many as asked, each paid once, and the same however it was cut."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reward import rehearsal
from reward.rehearsal import Call, Reply, completion
from sft import config
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import CheckFailed, UserError, read_rows, write_rows


class Policy:
    """A server that answers by what it was asked; `special` says otherwise for some calls."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.special: dict[str, Reply] = {}

    def __call__(self, call: Call) -> Reply:
        self.bodies.append(call.body)
        said = call.body["messages"][-1]["content"]
        for part, reply in self.special.items():
            if part in said:
                return reply
        finish = "length" if call.body["seed"] % 2 else "stop"
        text = f" About {said!r} ({call.body['seed']}) "
        return Reply(body=completion(text, finish=finish, model="policy"))

    def asked(self) -> Counter[str]:
        return Counter(json.dumps([b["messages"], b["seed"]]) for b in self.bodies)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    write_rows(
        prompts,
        [
            {"messages": [{"role": "user", "content": f"{word} keeps me awake at night"}]}
            for word in ("Work", "Rent", "Grief", "Noise", "Study", "Pain", "Heat", "Debt", "Loss")
        ],
    )
    return ["--run", "t", "--runs_dir", str(tmp_path / "runs"), "--prompts", str(prompts),
            "--start_adapter", "none", "--num_return_sequences", "2", "--backend", "openai",
            "--served_model", "policy", "--max_new_tokens", "60"]  # fmt: skip


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    import generate as module

    return module


def stage(tmp_path: Path, name: str = "candidates") -> tuple[list[Prompt], list[Candidate]]:
    folder = tmp_path / "runs" / "t" / name
    return (
        read_rows(folder / "prompts.jsonl", Prompt),
        read_rows(folder / "candidates.jsonl", Candidate),
    )


def test_a_served_policy_gives_seeded_candidates_with_the_system_prompt(
    tmp_path, flags, generate, capsys
):
    policy = Policy()
    with rehearsal.running(policy) as url:
        generate.main([*flags, "--base_url", url, "--dry_run"])
        assert "to ask: about" in capsys.readouterr().out
        assert policy.bodies == []
        generate.main([*flags, "--base_url", url])
    prompts, made = stage(tmp_path)
    assert [c.prompt_id for c in made] == [p.id for p in prompts for _ in range(2)]
    assert len({c.id for c in made}) == len(made) == 2 * len(prompts)
    assert {b["messages"][0]["role"] for b in policy.bodies} == {"system"}
    assert {b["max_completion_tokens"] for b in policy.bodies} == {60}
    for candidate in made:
        assert candidate.text.startswith("About") and candidate.model == "base"
        assert candidate.stop == ("length" if candidate.seed % 2 else "eos")  # cut off, and kept
        assert f"({candidate.seed})" in candidate.text


def test_shards_of_candidates_come_together_without_a_call(tmp_path, flags, generate):
    whole, parts = Policy(), Policy()
    with rehearsal.running(whole) as url:
        generate.main([*flags, "--base_url", url, "--run", "t"])
    prompts, made = stage(tmp_path)
    cut = [*flags, "--runs_dir", str(tmp_path / "other" / "runs")]
    with rehearsal.running(parts) as url:
        for number in (1, 2):
            generate.main([*cut, "--base_url", url, "--shard", f"{number}/2"])
        assert max(parts.asked().values()) == 1
        generate.main([*cut, "--base_url", url])
        assert parts.asked() == whole.asked()
    assert stage(tmp_path / "other") == (prompts, made)


def test_what_the_server_does_not_take_is_too_long_and_too_many_missing_stop_the_stage(
    tmp_path, flags, generate
):
    policy = Policy()
    too_long = {"error": {"message": "maximum context length", "code": "context_length_exceeded"}}
    policy.special["Grief"] = Reply(400, too_long)
    with rehearsal.running(policy) as url:
        generate.main([*flags, "--base_url", url])
        prompts, made = stage(tmp_path)
        assert len({c.prompt_id for c in made}) >= len(prompts) - 1
        policy.special["Rent"] = Reply(200, completion(None, finish="content_filter"))
        policy.special["Noise"] = policy.special["Debt"] = policy.special["Rent"]
        again = [*flags, "--base_url", url, "--run", "u"]
        with pytest.raises(CheckFailed, match=r"replies never came: \d+ refused"):
            generate.main(again)


def test_parts_of_a_local_policy_and_a_remote_server_are_refused(flags):
    local = [flag for flag in flags if flag not in ("--backend", "openai")]
    with pytest.raises(UserError, match=r"generate\.shard .* only a served policy"):
        config.load([*local, "--shard", "1/2"], "generate", "")
    remote = [*flags, "--base_url", "https://api.example.org/v1"]
    with pytest.raises(UserError, match=r"generate\.allow_remote"):
        config.load(remote, "generate", "")
    unnamed = [flag for flag in flags if flag not in ("--served_model", "policy")]
    with pytest.raises(UserError, match=r"generate\.served_model"):
        config.load([*unnamed, "--base_url", "http://localhost:1/v1"], "generate", "")
