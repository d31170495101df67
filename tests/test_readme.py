"""Law 9: every command that the documentation shows can be run, and what it names is there."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft import config
from sft.files import UserError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(python|accelerate|torchrun|bash) .*\bscripts/")
STAGE = re.compile(r"config\.load\(\s*argv, (None|\"\w+\")")


def blocks(text: str) -> Iterator[str]:
    """Yield the fenced bash blocks of a page."""
    yield from re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a block that starts one of the project's scripts."""
    for line in text.replace("\\\n", " ").splitlines():
        if COMMAND.match(line):
            words = shlex.split(line, comments=True)
            yield [word for word in words if not re.match(r"[A-Z_]+=", word)]


def documented() -> list[tuple[str, list[str]]]:
    """Return (where, words) of the commands in pages, recipes' comments and scripts' docstrings."""
    found = [(page, b) for page in PAGES for b in blocks(page.read_text(encoding="utf-8"))]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found.append((path, "\n".join(line.lstrip("# ") for line in lines if line[:1] == "#")))
    for path in sorted((ROOT / "scripts").glob("*.py")):
        head = path.read_text(encoding="utf-8").split('"""')[1]
        found.append((path, "\n".join(x.strip() for x in head.splitlines() if x[:4] == "    ")))
    return [
        (f"{path.relative_to(ROOT)}: {' '.join(words)}", words)
        for path, text in found
        for words in commands(text)
    ]


COMMANDS = documented()


def split_command(words: list[str]) -> tuple[Path, list[str]]:
    """Return the script and its arguments."""
    at = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    return ROOT / words[at], words[at + 1 :]


def test_the_read_me_shows_how_to_run_every_stage() -> None:
    shown = {split_command(words)[0].name for where, words in COMMANDS if "README" in where}
    assert {"quickstart.sh", "test.sh", "align.py", "finetune.py", "dpo.py", "export.py"} <= shown


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS], ids=[where for where, _ in COMMANDS]
)
def test_a_documented_command_parses(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    script, args = split_command(words)
    assert script.is_file()
    if script.suffix == ".sh":
        return
    if words[0] == "torchrun":
        # torchrun takes the project's --run for an abbreviation of its own --run-path.
        assert "--" in words or not any(word.startswith("--run") for word in args)
    if "--config_file" in words[: words.index(f"scripts/{script.name}")]:
        assert Path(words[words.index("--config_file") + 1]).is_file()
    stage = STAGE.search(script.read_text(encoding="utf-8"))
    if stage is not None:
        name = stage[1].strip('"')
        config.load(args, None if name == "None" else name, "")
    else:
        check_flags(script, args, monkeypatch, capsys)


def check_flags(
    script: Path,
    args: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script with a parser of its own names in its help every flag that is shown for it."""
    monkeypatch.syspath_prepend(str(script.parent))
    module = importlib.import_module(script.stem)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    known = capsys.readouterr().out
    for flag in (word.partition("=")[0] for word in args if word.startswith("--")):
        assert re.search(rf"{re.escape(flag)}\b", known)


# --- what pages name ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if t and not (page.parent / t).exists()] == []
    anchors = {t[1:] for t in targets if t.startswith("#")}
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
    assert anchors - slugs == set()


def test_files_that_the_read_me_names_are_there() -> None:
    named = set(re.findall(r"`((?:configs|scripts|sft|reward|rlaif|tests)/[\w./-]+)`", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    scripts = set(re.findall(r"`(\w+\.py)`", README))
    assert [name for name in sorted(scripts) if not (ROOT / "scripts" / name).is_file()] == []


def test_the_map_names_every_room_and_no_other() -> None:
    rows = re.findall(r"^\| `(sft|reward|rlaif)/` \| [^|]+ \| (.+) \|$", README, re.MULTILINE)
    assert {package for package, _ in rows} == {"sft", "reward", "rlaif"}
    for package in {package for package, _ in rows}:
        texts = [text for name, text in rows if name == package]
        mentioned = [room for text in texts for room in re.findall(r"`([a-z_]+)`", text)]
        rooms = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert sorted(mentioned) == sorted(rooms)


def test_settings_that_the_read_me_names_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    named = set(re.findall(r"`--((?:\w+\.)?\w+) (\S+)`", README))
    assert named
    for name, value in sorted(named - {("key", "value")}):
        try:
            config.load(["--run", "t", f"--{name}", value], "dpo", "")
        except UserError as error:  # the value may need others beside it
            assert "unknown setting" not in str(error)


def test_the_exit_codes_are_told() -> None:
    for code in ("0", "1", "2", "3", "4", "5", "6", "130", "143"):
        assert re.search(rf"(?<!\d){code} ", README.partition("Exit codes")[2][:600])


def test_no_placeholder_is_left() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert re.findall(r"^[A-Z]{5,}$", text, re.MULTILINE) == []
