"""What identifies people is taken out of texts before they leave this machine.

E-mail addresses, links, handles, telephone and other long numbers go by rules, names as
`reward.names` finds them. Each value becomes a placeholder that is the same wherever it stands in a
conversation: [NAME_1]. Public helplines stay, because the verdict on a reply depends on them. Not
here: streets, places, employers, dates in words, and names that merely stand in a sentence.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from reward.fluency import is_common
from reward.lexicon import load_asset
from reward.names import FindNames, FindNamesBy, name_finder
from reward.service import Service
from reward.text import visible
from sft.candidates import Candidate
from sft.data import Message, Prompt

FEWEST_DIGITS = 6  # of a number that may identify somebody; years, doses and ages have fewer
PHONE = range(7, 16)  # digits of a telephone number (E.164: at most 15)
_APP = r"(?:discord|insta|instagram|snap|snapchat|telegram|tiktok|twitter|signal|reddit|steam)"
_ENDING = r"(?:com|org|net|edu|gov|info|app|uk|de|fr|es|nl|ca|au|ie|eu|ch|nz)\b"
_GAP = r"(?:[ \t]|[-/.\u2010-\u2015](?!\s)|\)\s?|\s?\(|\s[-/\u2010-\u2015]\s)"
# At one place the first that fits wins. A spoken "at" or a bare domain needs a well-known ending:
# people forget the space after a full stop.
_IDENTIFYING = re.compile(
    r"(?P<EMAIL>(?<![\w.+-])[\w.+-]+(?:\s?@\s?[\w-]+(?:\.[\w-]+)+"
    r"|\s*(?:[(\[]\s*at\s*[)\]]|\sat\s|@)\s*[\w-]+(?:\s*(?:[(\[]\s*dot\s*[)\]]|\sdot\s)\s*[a-z]+)+"
    rf"|\sat\s[\w-]+\.{_ENDING}))"
    r"|(?P<LINK>\b(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)\]]"
    r"|\b(?:[\w-]+\.)+[a-z]{2,12}/[^\s<>\"]*[^\s<>\".,;:!?)\]]"
    rf"|\b(?:[\w-]+\.)+{_ENDING})"
    r"|(?P<HANDLE>(?<![\w@])@[a-z_][\w.]+\b|\bu/[\w-]{3,}|\b[\w.]{3,}\#\d{4}\b)"
    rf"|\b(?:{_APP}\s*:|(?:my|on)\s+(?:{_APP}\s*)?(?:handle|user\s?name|name\s+on\s+{_APP}|{_APP})"
    r"(?:\s+(?:handle|user\s?name|name|id))?\s*(?:is|:))\s*(?P<SAID>[\w.\-]{3,}\b)"
    r"|(?P<IBAN>\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){2,7}(?:\s?[A-Z0-9]{1,3})?\b)"
    rf"|(?P<NUMBER>(?<!\w)[+(]{{0,2}}\d(?:{_GAP}?\d)+(?!\w))",
    re.IGNORECASE,
)
_KINDS = {"SAID": "HANDLE", "IBAN": "NUMBER"}
_DATE = re.compile(r"\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{4}[-./]\d{1,2}[-./]\d{1,2}")
_PLACEHOLDER = re.compile(r"\[[A-Z]+_\d+\]")


@dataclass(frozen=True)
class _Place:
    """Something that identifies: where it stands, what it is, and its normal form."""

    start: int
    end: int
    kind: str
    value: str
    normal: str


class Veil:
    """The placeholders of one conversation.

    Example:
        >>> from reward.names import by_rules
        >>> veil = Veil(by_rules)
        >>> veil.learn(["I'm Marit. Write to marit@example.org."])
        >>> veil.hide("Marit waits."), veil.hide("marit@example.org")
        ('[NAME_1] waits.', '[EMAIL_1]')

    Args:
        find_names: says where names stand in a text.
    """

    def __init__(self, find_names: FindNames) -> None:
        self._find_names = find_names
        self._known: dict[tuple[str, str], str] = {}  # (kind, normal form) -> placeholder
        self._values: dict[str, str] = {}  # placeholder -> the value as it first stood
        self._typed: set[str] = set()  # placeholders that stood in the texts themselves

    def copy(self) -> Veil:
        """One that knows the same, and learns apart."""
        other = Veil(self._find_names)
        other._known, other._values = dict(self._known), dict(self._values)
        other._typed = set(self._typed)
        return other

    def learn(self, texts: Iterable[str]) -> None:
        """Give what identifies somebody in the texts its placeholders, in their order."""
        seen = [visible(text) for text in texts]
        for text in seen:
            self._typed.update(_PLACEHOLDER.findall(text))
        for text in seen:
            for place in self._places(text):
                parts, written = [place.normal], list[str]()
                if place.kind == "NAME":
                    # As written, too: small letters of other lengths would not find it again.
                    parts, written = place.normal.split(), place.value.split()
                made = self._known.get((place.kind, parts[0])) or self._next(place.kind)
                self._values.setdefault(made, place.value)
                # Whoever was introduced by full name is then called by one part of it.
                for part in (*parts, *written):
                    self._known.setdefault((place.kind, part), made)

    def hide(self, text: str) -> str:
        """The text with placeholders for all that identifies somebody in it or was learnt."""
        self.learn([text])
        seen = visible(text)
        spans = [
            (place.start, place.end, self._known[place.kind, place.normal.split()[0]])
            for place in self._places(seen)
        ]
        spans = _joined(seen, [*spans, *self._called(seen, spans)])
        if not spans:
            return text
        # Hidden characters elsewhere in the text stay: detectors of attacks look for them.
        at = [i for i, character in enumerate(text) if visible(character)]
        for start, end, placeholder in sorted(spans, reverse=True):
            text = text[: at[start]] + placeholder + text[at[end - 1] + 1 :]
        return text

    def restore(self, text: str) -> str:
        """The text with the first form of each value in its placeholder's stead.

        A name in small letters gets large ones: it might be a common word, not hidden again.
        """

        def value(match: re.Match[str]) -> str:
            found = self._values.get(match[0], match[0])
            return found.title() if match[0].startswith("[NAME_") and found.islower() else found

        return _PLACEHOLDER.sub(value, text)

    # --- parts ---------------------------------------------------------------------------------

    def _places(self, text: str) -> list[_Place]:
        """What identifies somebody in a clean text, from left to right; none overlap."""
        places = [place for m in _IDENTIFYING.finditer(text) if (place := _place(m)) is not None]
        for start, end in self._find_names(text):
            if not any(p.start < end and start < p.end for p in places):
                value = text[start:end]
                places.append(_Place(start, end, "NAME", value, value.casefold()))
        return sorted(places, key=lambda place: place.start)

    def _called(
        self, text: str, taken: Sequence[tuple[int, int, str]]
    ) -> list[tuple[int, int, str]]:
        """Where a known name stands beside what is taken already."""
        names = [normal for kind, normal in self._known if kind == "NAME"]
        if not names:
            return []
        found: list[tuple[int, int, str]] = []
        names.sort(key=len, reverse=True)
        any_of = "|".join(f"({re.escape(name)})" for name in names)
        for match in re.finditer(rf"(?<!\w)(?:{any_of})(?!\w)", text, re.IGNORECASE):
            start, end = match.span()
            # Will is a name, and "will" is none.
            if match[0].islower() and is_common(match[0]):
                continue
            if not any(a < end and start < b for a, b, _ in taken):
                # Which one it is cannot be told by the letters: a dotless i counts as i here.
                name = names[int(match.lastindex or 0) - 1]
                found.append((start, end, self._known["NAME", name]))
        return found

    def _next(self, kind: str) -> str:
        number = 1
        while (made := f"[{kind}_{number}]") in self._values or made in self._typed:
            number += 1
        return made


def _joined(text: str, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans with the parts of one name, side by side, as one: it is put back once.

    The same word twice is two mentions.
    """
    made: list[tuple[int, int, str]] = []
    for start, end, placeholder in sorted(spans):
        last, until, named = made[-1] if made else (0, 0, "")
        again = text[last:until] == text[start:end]
        if named == placeholder and text[until:start].isspace() and not again:
            start = made.pop()[0]
        made.append((start, end, placeholder))
    return made


def _place(match: re.Match[str]) -> _Place | None:
    """What a match is; None where it identifies nobody."""
    group = str(match.lastgroup)
    value, (start, end) = match[group], match.span(group)
    kind, normal = _KINDS.get(group, group), re.sub(r"\s", "", value.casefold())
    if group == "LINK" and _is_public(normal):
        return None
    if group == "NUMBER":
        groups = re.findall(r"\d+", value)
        date = _DATE.fullmatch(value)
        if not date and not _identifies(groups):
            return None
        normal = "".join(groups)
        kind = "PHONE" if len(normal) in PHONE and not date else "NUMBER"
    return _Place(start, end, kind, value, normal)


def _identifies(groups: Sequence[str]) -> bool:
    """Whether a number in groups of digits may be somebody's own: counting down from ten is not,
    nor is a public number with "24/7" behind it.
    """
    if _counts(groups):
        return False
    left = 0
    at = 0
    while at < len(groups):
        ends = range(len(groups), at, -1)
        public = next((end for end in ends if "".join(groups[at:end]) in public_numbers()), None)
        left += 0 if public else len(groups[at])
        at = public or at + 1
    return left >= FEWEST_DIGITS


def _counts(groups: Sequence[str]) -> bool:
    """Whether somebody counts up or down by one there; telephone numbers in pairs do not."""
    if any(len(group) > 2 or group.startswith("0") for group in groups):
        return False
    steps = {int(after) - int(before) for before, after in pairwise(groups)}
    return steps in ({1}, {-1})


@cache
def public_numbers() -> frozenset[str]:
    """Digits of the numbers that everybody may know."""
    lists = load_asset("redaction")["numbers"].values()
    return frozenset(number for each in lists for number in each.split())


def _is_public(link: str) -> bool:
    host = re.sub(r"^[a-z]+://", "", link).partition("/")[0].removeprefix("www.")
    domains = load_asset("redaction")["domains"]["helplines"].split()
    return any(host == domain or host.endswith("." + domain) for domain in domains)


# --- what is sent ------------------------------------------------------------------------------


def outgoing(
    service: Service, prompts: Sequence[Prompt], candidates: Sequence[Candidate]
) -> tuple[Sequence[Prompt], Sequence[Candidate]]:
    """Prompts and replies, under the same ids, as they may be sent to a service.

    What stands for a prompt does not depend on its replies, so that all of them are asked about
    with the same words. A service on this machine gets them as they are, unless told otherwise.
    """
    veils = {prompt.id: veil_for(service, prompt) for prompt in prompts}
    shown = [replace(prompt, messages=hidden(veils[prompt.id], prompt)) for prompt in prompts]
    replies = [
        replace(each, text=veil.copy().hide(each.text) if veil else each.text)
        for each in candidates
        for veil in (veils[each.prompt_id],)
    ]
    return shown, replies


def veil_for(service: Service, prompt: Prompt) -> Veil | None:
    """The placeholders of a conversation; None where the service gets it as it is."""
    if not service.redacts:
        return None
    _tell(service.host, service.redact_names)
    veil = Veil(name_finder(service.redact_names))
    veil.learn(message["content"] for message in prompt.messages)
    return veil


def with_names(text: str, prompt: Prompt, reply: str, by: FindNamesBy) -> str:
    """What a judge said of a reply, with the values of the placeholders that it was shown.

    Beside texts as they are, or numbered anew, a placeholder would be nobody's or somebody else's.
    """
    if not _PLACEHOLDER.search(text):
        return text
    veil = Veil(name_finder(by))
    veil.learn(message["content"] for message in prompt.messages)
    veil.learn([reply])
    return veil.restore(text)


def hidden(veil: Veil | None, prompt: Prompt) -> list[Message]:
    """A prompt's messages behind its veil."""
    if veil is None:
        return prompt.messages
    return [{"role": m["role"], "content": veil.hide(m["content"])} for m in prompt.messages]


@cache
def _tell(host: str, names: str) -> None:
    """Say once what is taken out of that which leaves the machine, and what is not."""
    by = "by Presidio and rules" if names == "presidio" else "where introduced, addressed or titled"
    print(
        f"note: redacted in all that goes to {host}: e-mail, links, handles, numbers of "
        f"{FEWEST_DIGITS} digits or more, names {by}; public helplines stay. Not redacted: other "
        "names, streets, places, employers, dates in words",
        file=sys.stderr,
        flush=True,
    )
