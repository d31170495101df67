"""The benchmarks' own command lines: a mistake is told at once, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.files import read_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("seeds", ["a", "1,2.5", "1,-3", "1,", "1,2,1"])
def test_wrong_seeds_are_a_mistake_of_the_user(tmp_path: Path, seeds: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_alignment.py"), "--seeds", seeds],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"--seeds {seeds}: not different whole numbers" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_feedback_compares_both_clients(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_feedback

    flags = ["--repeats", "1", "--requests", "40", "--rows", "3000"]
    monkeypatch.setattr(sys, "argv", ["bench_feedback.py", *flags])
    bench_feedback.main()
    made = read_json(tmp_path / "runs" / "bench" / "feedback.json")
    assert [(row["work"], row["against"]) for row in made["rows"]] == [
        ("zero-ms-32", "AsyncOpenAI"),
        ("half-second-1000", "AsyncOpenAI"),
    ]
    assert all(row["ratio"] > 0 for row in made["rows"])
    assert made["resume"]["rows"] == 3000
    assert "; 1 left to ask" in capsys.readouterr().out
