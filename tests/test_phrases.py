"""The embedded evaluator and the clinic's ground truth share no phrase lists.

The one labels training data and the other judges the result: were they made from the same phrases,
the proof would only say that the policy learned the list. Ordinary English is shared, of course, so
what is counted is runs of words.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sft.recognise import words_in

ROOT = Path(__file__).resolve().parents[1]
Run = list[list[str]]  # per element of a pattern its words; `stop*` stands for words that start so
Gram = tuple[str, ...]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def constants(path: Path) -> Iterator[str]:
    """Yield the texts in a module's code, docstrings apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def runs(line: str) -> Iterator[Run]:
    """Yield the stretches of words in a pattern (the language of `reward.lexicon`).

    Once without what is optional, once with all of it; gaps, slots and look-aheads end a stretch.
    """
    for variant in (re.sub(r"\[[^\]]*\]", " ", line), re.sub(r"[\[\]]", " ", line)):
        run: Run = []
        for element in variant.split():
            if element in ("_", "__") or element[0] in "!^$" or "{" in element:
                yield run
                run = []
            else:
                run.append([word for word in element.split("|") if word not in ("", "$")])
        yield run


@pytest.fixture(scope="module")
def clinic() -> list[Gram]:
    """Words of everything that the clinic can say and the ground truth looks for."""
    texts: list[str] = []
    for path in sorted((ROOT / "sft" / "assets" / "clinic").rglob("*.yaml")):
        texts += strings(yaml.safe_load(path.read_text(encoding="utf-8")))
    for name in ("recognise", "ground_truth"):
        texts += constants(ROOT / "sft" / f"{name}.py")
    return [words_in(text) for text in texts]


@pytest.fixture(scope="module")
def patterns() -> list[Run]:
    """Stretches of words in the evaluator's patterns and in its code."""
    found: list[Run] = []
    for path in sorted((ROOT / "reward" / "assets").glob("*.yaml")):
        for block in strings(yaml.safe_load(path.read_text(encoding="utf-8"))):
            lines = (line.partition("#")[0] for line in block.splitlines())
            found += [run for line in lines for run in runs(line)]
    for path in sorted((ROOT / "reward").glob("*.py")):
        found += [[[word] for word in words_in(text)] for text in constants(path)]
    return found


def grams(phrases: list[Gram], n: int) -> set[Gram]:
    return {words[i : i + n] for words in phrases for i in range(len(words) - n + 1)}


def shared(patterns: list[Run], phrases: list[Gram], n: int, *, plain: bool) -> set[Gram]:
    """Runs of n words of the clinic that a pattern fits; `plain`: without alternatives or stars."""
    by_first: dict[str, list[Gram]] = defaultdict(list)
    for gram in grams(phrases, n):
        by_first[gram[0]].append(gram)
    found: set[Gram] = set()
    for run in patterns:
        for i in range(len(run) - n + 1):
            window = run[i : i + n]
            if plain and any(len(words) != 1 for words in window):
                continue
            for gram in (g for word in window[0] for g in starting(word, by_first)):
                if all(fits(word, words) for word, words in zip(gram, window, strict=True)):
                    found.add(gram)
    return found


def starting(word: str, by_first: dict[str, list[Gram]]) -> Iterator[Gram]:
    stem, star, _ = word.partition("*")
    for first in (each for each in by_first if each.startswith(stem)) if star else (word,):
        yield from by_first.get(first, ())


def fits(word: str, words: list[str]) -> bool:
    return any(word == w or (w.endswith("*") and word.startswith(w[:-1])) for w in words)


def test_no_five_words_of_the_clinic_stand_in_a_pattern(clinic, patterns):
    assert shared(patterns, clinic, 5, plain=True) == set()


@pytest.mark.parametrize(
    ("n", "most"),
    # Measured: 13.1 %, 3.1 %, 0.7 % and 0; "I do not know how to say" is the longest of them.
    [(3, 0.135), (4, 0.033), (5, 0.01), (8, 0.0)],
)
def test_what_patterns_with_their_alternatives_fit_is_ordinary_english(clinic, patterns, n, most):
    found = shared(patterns, clinic, n, plain=False)
    share = len(found) / len(grams(clinic, n))
    print(f"{len(found)} of {len(grams(clinic, n))} runs of {n} words are shared: {share:.2%}")
    assert share <= most


def test_a_copied_phrase_would_be_seen(clinic, patterns):
    phrase = max(clinic, key=len)[:6]
    copied = next(runs(" ".join(phrase)))
    assert shared([copied], clinic, 5, plain=True)
    hidden = next(runs(f"{phrase[0]}|other {' '.join(phrase[1:5])}* _ x"))
    assert shared([hidden], clinic, 5, plain=False)
    assert not shared([hidden], clinic, 5, plain=True)


def test_neither_side_reads_what_the_other_knows():
    ours = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "reward").rglob("*.py"))]
    known = ("ground_truth", "recognise", "simulator", "counsellors", "sft.clinic", "assets/clinic")
    assert not [word for word in known if any(word in source for source in ours)]
    for name in ("clinic", "recognise", "ground_truth", "simulator", "counsellors", "sides"):
        source = (ROOT / "sft" / f"{name}.py").read_text(encoding="utf-8")
        assert "reward" not in source
        assert "demonstrations.jsonl" not in source
