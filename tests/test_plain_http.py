"""No command sends conversations over a network in plain text, nor to a host that nobody named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft.files import UserError

PLAIN = "http://judge.example.org/v1"
OTHER = "https://judge.example.org/v1"
RECIPE = ["--run", "t"]
JUDGE = [*RECIPE, "--score.evaluator", "openai", "--score.evaluator_model", "m"]
POLICY = [*RECIPE, "--generate.backend", "openai", "--generate.served_model", "m"]
CARD = ["--data", "none.jsonl", "--evaluator", "openai", "--model", "m"]
COMMANDS = {
    "score": ("score", JUDGE, "--score.base_url"),
    "score, dry": ("score", [*JUDGE, "--dry_run"], "--score.base_url"),
    "score, panel": ("score", [*JUDGE, "--score.base_url", "http://localhost:1/v1"], "--panel"),
    "generate, dry": ("generate", [*POLICY, "--dry_run"], "--generate.base_url"),
    "refine, judge": ("refine", JUDGE, "--score.base_url"),
    "refine, policy": ("refine", POLICY, "--generate.base_url"),
    "card": ("judge_card", CARD, "--base_url"),
    "card, dry": ("judge_card", [*CARD, "--dry_run"], "--base_url"),
}


@pytest.mark.parametrize("address", [PLAIN, OTHER])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_before_it_reads_or_asks_anything(
    name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    monkeypatch.chdir(tmp_path)
    script, given, field = COMMANDS[name]
    module = __import__(script)
    given = [*given, field, f"x@{address}" if field == "--panel" else address]
    said = "as plain text" if address == PLAIN else "would send conversations to judge.example.org"
    with pytest.raises(UserError, match=said):
        if script == "judge_card":
            monkeypatch.setattr(sys, "argv", [script, *given])
            module.main()
        else:
            module.main(given)
    assert not list(tmp_path.iterdir())
