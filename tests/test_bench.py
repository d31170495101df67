"""The benchmarks' own command lines: a mistake is told at once, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
