"""A small pattern language over canonical words, and the matcher that reads a text once.

A pattern is a line; its elements stand for consecutive words:

    sleep          the word             sleep|rest    one of the words
    sleep*         words that start so  {want}        one of a slot's lines (slots may nest)
    [really]       optional             _   __        up to 3, up to 7 words of any kind
    !here|with     the next word is none of these; !{slot} likewise
    ^   $          start and end of the sentence; $ may be one of several alternatives

Slots and families of patterns are text blocks in `assets/*.yaml`, one line each, so that a reader
can check and extend them. `#` starts a comment.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

try:
    from yaml import CSafeLoader as _Loader  # ten times faster, where PyYAML has libyaml
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

ASSETS = Path(__file__).parent / "assets"
_ELEMENT = re.compile(r"\[[^\]]+\]|\S+")
_GAPS = {"_": r"(?:\S+ ){0,3}?", "__": r"(?:\S+ ){0,7}?"}
_KEY = 3  # letters of a wildcard that the index needs


@dataclass(frozen=True)
class Hit:
    """The pattern number `line` of `family`, found at the words start..end (end excluded)."""

    family: str
    line: int
    start: int
    end: int


# Python's own cache keeps 512 expressions; compiling on first use keeps the start short.
@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def lines(block: str) -> list[str]:
    """Return the lines of a text block without comments and blank ones."""
    stripped = (line.partition("#")[0].strip() for line in block.splitlines())
    return [line for line in stripped if line]


@cache
def load_asset(name: str) -> dict[str, dict[str, str]]:
    """Return the sections of `assets/<name>.yaml`, each a mapping of names to text blocks."""
    with (ASSETS / f"{name}.yaml").open(encoding="utf-8") as file:
        sections: dict[str, dict[str, str]] = yaml.load(file, Loader=_Loader)
    return sections


class Matcher:
    """Finds every family's patterns in a sentence in one pass.

    Patterns are indexed by the words they can start with, so that the time grows with the text and
    hardly with the number of patterns.

    Args:
        slots: Name to text block; a line of a slot is a pattern without gaps.
        families: Name to text block of patterns.

    Raises:
        KeyError: A pattern uses a slot that is not there.
        ValueError: A pattern starts with a gap or with a wildcard of under three letters.
    """

    def __init__(self, slots: Mapping[str, str], families: Mapping[str, str]) -> None:
        self._slots = {name: lines(block) for name, block in slots.items()}
        self.patterns = {name: lines(block) for name, block in families.items()}
        self._index: dict[str, list[tuple[str, int, str]]] = {}
        for family, patterns in self.patterns.items():
            for line, pattern in enumerate(patterns):
                anchored, body = pattern.startswith("^"), pattern.lstrip("^ ")
                regex = ("^" if anchored else "") + self._regex(body)
                for key in sorted(self._starts(body)):
                    self._index.setdefault(key, []).append((family, line, regex))

    def words_of_slot(self, name: str) -> frozenset[str]:
        """Return the words of a slot whose lines are single alternatives."""
        return frozenset(word for line in self._slots[name] for word in line.split("|"))

    def _regex(self, pattern: str) -> str:
        out = []
        for element in _ELEMENT.findall(pattern):
            if element in _GAPS:
                out.append(_GAPS[element])
            elif element[0] == "[":
                out.append(f"(?:{self._regex(element[1:-1])})?")
            elif element[0] == "!":
                out.append(f"(?!{self._regex(element[1:])})")
            else:
                parts = []
                for part in element.split("|"):
                    if part[0] == "{":
                        parts += [self._regex(line) for line in self._slots[part[1:-1]]]
                    elif part == "$":
                        parts.append("$")
                    else:
                        parts.append(re.escape(part).replace(r"\*", r"\S*") + " ")
                out.append(f"(?:{'|'.join(parts)})")
        return "".join(out)

    def _starts(self, pattern: str) -> set[str]:
        """Return the index keys of a pattern: first words, or first letters with a star."""
        found: set[str] = set()
        for element in _ELEMENT.findall(pattern):
            if element[0] == "[":
                found |= self._starts(element[1:-1])
                continue
            if element[0] in "_!$":
                break
            for part in element.split("|"):
                stem, star, _ = part.partition("*")
                if part[0] == "{":
                    for line in self._slots[part[1:-1]]:
                        found |= self._starts(line)
                elif star and len(stem) < _KEY:
                    raise ValueError(f"pattern {pattern!r}: {part} needs three letters")
                else:
                    found.add(stem[:_KEY] + "*" if star else part)
            return found
        raise ValueError(f"pattern {pattern!r} may start with any word")

    def find(self, words: Sequence[str]) -> list[Hit]:
        """Return the hits in a sentence's canonical words, by start."""
        text = " ".join(words) + " "
        hits: list[Hit] = []
        position = 0
        for start, word in enumerate(words):
            for key in (word, word[:_KEY] + "*"):
                for family, line, expression in self._index.get(key, ()):
                    if match := _compiled(expression).match(text, position):
                        hits.append(Hit(family, line, start, start + match[0].count(" ")))
            position += len(word) + 1
        return hits


@cache
def matcher(name: str) -> Matcher:
    """Return the matcher of `assets/<name>.yaml` (sections `slots` and `families`)."""
    sections = load_asset(name)
    return Matcher(sections["slots"], sections["families"])
