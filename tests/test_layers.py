"""Reads the sources: who may import whom, what loads fast, and what nobody may do."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sft", "reward", "rlaif")
SOURCES = sorted(path for name in (*PACKAGES, "scripts") for path in (ROOT / name).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}

# Each takes a second or more to import. Settings, data and pairs are read, and mistakes in them
# reported, without them.
SLOW = {
    *("accelerate", "bitsandbytes", "datasets", "openai", "peft", "torch", "transformers", "trl"),
    "wandb",
}
FAST_MODULES = (
    "sft.config",
    "sft.files",
    "sft.runs",
    "sft.data",
    "sft.simulator",
    "sft.ground_truth",
    "sft.curate",
    "sft.material",
    "sft.lineage",
    "reward.offline",
    "reward.risk",
    "reward.rubric",
    "reward.pairs",
    "reward.evaluator",
    "reward.evaluators",
    "reward.score",
    "rlaif.evaluate",
    "rlaif.proof",
    "rlaif.export",
    "rlaif.card",
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the dotted names that an import may load: `from sft import data` loads `sft.data`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from names(node)


def imports_when_loaded(path: Path) -> Iterator[str]:
    """Yield what is imported outside functions and `if TYPE_CHECKING:`."""
    todo: list[ast.AST] = [tree(path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from names(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))


def test_there_is_something_to_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {*PACKAGES, "scripts"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("sft", {"reward", "rlaif", "scripts"}),
        ("reward", {"rlaif", "scripts"}),
        ("rlaif", {"scripts"}),
    ],
)
def test_imports_follow_the_data(package: str, forbidden: set[str]) -> None:
    backward = [
        f"{short(path)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not backward


def test_no_relative_imports() -> None:
    found = [
        short(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not found  # the checks in this file read absolute names


@pytest.mark.parametrize("module", FAST_MODULES)
def test_a_fast_module_loads_no_slow_library(module: str) -> None:
    origin = {module: module}
    todo = [module]
    slow = []
    while todo:
        current = todo.pop()
        for name in imports_when_loaded(MODULES[current]):
            if name.split(".")[0] in SLOW:
                slow.append(f"{origin[current]} -> {name}")
            elif name in MODULES and name not in origin:
                origin[name] = f"{origin[current]} -> {name}"
                todo.append(name)
    assert not slow


def test_a_script_shadows_no_library() -> None:
    # `python scripts/x.py` puts scripts/ first on the path
    packages = [path for path in SOURCES if path.parent != ROOT / "scripts"]
    taken = {name.split(".")[0] for path in packages for name in imports(path)}
    scripts = {path.stem for path in SOURCES if path.parent == ROOT / "scripts"}
    assert not scripts & (taken | SLOW | {*PACKAGES, "evaluate", "tokenizers"})


# --- what nobody may do ---------------------------------------------------------------------------

UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "unpickles; weights are safetensors",
    "torch.save": "pickles; weights are safetensors",
    "yaml.load": "builds objects; use yaml.safe_load or a loader that is a yaml.SafeLoader",
    "yaml.unsafe_load": "builds objects; use yaml.safe_load",
}
FORBIDDEN_SETTINGS = {"weights_only=False", "allow_pickle=True"}


@cache
def safe_loaders() -> set[str]:
    """Return the names that our sources give to yaml's safe loaders and to subclasses of them."""
    safe = {"SafeLoader", "CSafeLoader"}
    found = {f"yaml.{name}" for name in safe}
    for node in (node for path in SOURCES for node in ast.walk(tree(path))):
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & found:
            found.add(node.name)
        if isinstance(node, ast.ImportFrom) and node.module == "yaml":
            found |= {alias.asname or alias.name for alias in node.names if alias.name in safe}
    return found


def settings_of(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of a call's keywords, and of options collected in a dict before it."""
    if isinstance(node, ast.Call):
        yield from ((keyword.arg or "", ast.unparse(keyword.value)) for keyword in node.keywords)
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, ast.unparse(value)


def violations(source: ast.Module) -> Iterator[str]:
    for node in ast.walk(source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in names(node):
                if name.split(".")[0] in UNPICKLERS:
                    yield f"line {node.lineno}: imports {name}, which unpickles"
        given = dict(settings_of(node))
        if isinstance(node, ast.Call) and given.get("Loader") not in safe_loaders():
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {called} {FORBIDDEN_CALLS[called]}"
        for setting in FORBIDDEN_SETTINGS & {f"{name}={value}" for name, value in given.items()}:
            yield f"{setting} unpickles"
        if given.get("trust_remote_code", "False") != "False":
            yield "trust_remote_code runs downloaded code"


def test_nothing_is_unpickled_and_no_remote_code_is_trusted() -> None:
    found = [f"{short(path)}, {what}" for path in SOURCES for what in violations(tree(path))]
    assert not found  # law 8, "nothing is unpickled; nothing trusts remote code"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "eval(text)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=asked)",
        'options = {"trust_remote_code": True}',
        "f(path, weights_only=False)",
    ],
)
def test_the_check_sees_what_it_is_for(code: str) -> None:
    assert list(violations(ast.parse(code)))


def test_the_check_leaves_harmless_code_alone() -> None:
    code = "import json\nmodel.eval()\nyaml.safe_load(text)\nload(name, trust_remote_code=False)"
    assert not list(violations(ast.parse(code)))


@pytest.mark.parametrize(
    ("method", "home"),
    [("apply_chat_template", "sft/chat.py"), ("from_pretrained", "sft/model.py")],
)
def test_one_room_for_each_decision(method: str, home: str) -> None:
    users = {
        short(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == method
    }
    assert users == {home}
