"""A wheel has all that the packages read, the clinicians' rubric among it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sft", "reward", "rlaif")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
USE = """
import reward.rubric, sft.simulator
print(reward.rubric.DEFAULT_RUBRIC)
print(reward.rubric.load_rubric().id)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` of a wheel puts into site-packages."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "configs"):
        clutter = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=clutter)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD, str(out)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (wheel,) = out.glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_every_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copied = installed / file.relative_to(ROOT)
                assert copied.read_bytes() == file.read_bytes(), file
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == set(PACKAGES)


def test_the_default_rubric_is_the_one_of_the_checkout(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    path, name = done.stdout.split()
    assert Path(path) == installed / "reward" / "configs" / "rubric.yaml"
    assert Path(path).read_bytes() == (ROOT / "configs" / "rubric.yaml").read_bytes()
    assert name.startswith("supportive-reply@")
