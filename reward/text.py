"""Plain English text as an evaluator needs it: sentences, canonical words, light stems.

Canonical words let a pattern be written once: "I'm", "im" and "I am" become the same words, as do
"can't", "cant" and "cannot"; look-alike characters, stretched letters and the commonest
misspellings of the words that matter for safety are undone.
"""

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

_QUOTES = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u0060": "'", "\u201c": '"', "\u201d": '"'}
)
# Soft hyphen, zero-width and bidirectional marks: invisible, so they can only hide something.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_LEET = str.maketrans("013457@$!", "oieastasi")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|dr|mr|mrs|ms|vs|a\.m|p\.m)\.", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?\u2026\n]+(?:[.!?\u2026]+[\"')\]]*|\n+|$)")
_NO_ONE = re.compile(r"\bno[ -]one\b")
# "d!e", "k!ll": the mark is a letter there, not the end of a sentence.
_BANG = re.compile(
    r"\b(d|k|su|wr|l|p)!(e|es|ll|lls|lling|lled|cide|cidal|st|sts|fe|ve|lls)\b", re.I
)
_TWO = re.compile(r"\b2(?= (?:kill|die|end|be|do|live|hurt|cut|sleep|stop)\b)")
_BREAK = re.compile(r"[,;:()\"\u2013\u2014]+|\s-+\s")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_OBFUSCATED = re.compile(r"(?<![\w@])(?=[\w@$!*]*[a-z])(?=[\w@$!*]*[0-9@$!*][a-z])[\w@$!*]{3,}")
# Letters that English doubles are cut to two inside a word ("sleeeep"), all others to one.
_DOUBLED = re.compile(r"([els])\1{2,}(?!\1)(?=[a-z])|([ls])\2{2,}\b")
_STRETCHED = re.compile(r"([a-z])\1{2,}")

_SHORT = {
    "i'm": "i am", "im": "i am", "ive": "i have", "cannot": "can not", "can't": "can not",
    "cant": "can not", "won't": "will not", "wont": "will not", "ain't": "is not",
    "dont": "do not", "doesnt": "does not", "didnt": "did not", "isnt": "is not",
    "wasnt": "was not", "werent": "were not", "arent": "are not", "havent": "have not",
    "hasnt": "has not", "hadnt": "had not", "wouldnt": "would not", "couldnt": "could not",
    "shouldnt": "should not", "youre": "you are", "theyre": "they are", "hes": "he is",
    "shes": "she is", "thats": "that is", "whats": "what is", "theres": "there is",
    "youve": "you have", "theyd": "they would", "youd": "you would", "wanna": "want to",
    "gonna": "going to", "gotta": "got to", "u": "you", "ur": "your", "rn": "right now",
    "tn": "tonight", "ppl": "people", "idk": "i do not know", "alot": "a lot", "pls": "please",
    "let's": "let us", "cuz": "because", "n't": "not", "anymore": "any more", "tho": "though",
    "everybody": "everyone", "noone": "nobody", "somebody": "someone",
    "anybody": "anyone", "alright": "all right", "ok": "okay", "mom": "mum", "mother": "mum",
    "father": "dad",
    "kys": "kill yourself", "kms": "kill myself", "selfharm": "self harm", "meself": "myself",
    "mg": "mg", "wana": "want to", "woudl": "would", "becuase": "because", "becos": "because",
    "ctb": "catch the bus", "od": "overdose", "tmrw": "tomorrow", "tmr": "tomorrow",
    "2moro": "tomorrow", "2nite": "tonight", "tonite": "tonight", "2day": "today",
    "dnt": "do not", "dunno": "do not know", "cba": "can not be bothered",
    "ngl": "not going to lie", "gona": "going to", "every1": "everyone", "any1": "anyone",
    "no1": "nobody", "sum1": "someone", "nobdy": "nobody", "wnat": "want", "lfie": "life",
    "livin": "living", "killin": "killing", "endin": "ending", "dyin": "dying",
    "bein": "being", "wi": "with", "dae": "do", "nae": "no", "mair": "more",
    "cannae": "can not", "dinnae": "do not", "wantin": "wanting", "anymroe": "any more",
    "shouldve": "should have", "wouldve": "would have", "couldve": "could have",
}  # fmt: skip
_TAIL = {"'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
# After these words 's is "is"; after any other it marks possession and is dropped.
_IS_AFTER = frozenset(
    (
        *("he", "she", "it", "that", "there", "here", "what", "who", "how", "where", "when"),
        *("this", "everything"),
    )
)
# Words worth correcting: a misspelt "suicidal" must not hide. None of the corrections within one
# edit is itself an English word that people use.
_KEY_WORDS = (
    "suicide", "suicidal", "overdose", "overdosing", "killing", "myself", "yourself", "painkillers",
    "disappear", "existing", "hopeless", "worthless", "therapist", "emergency", "helpline",
    "goodbye", "tonight", "anymore", "depressed", "anxious",
)  # fmt: skip
_REAL = frozenset(
    (
        *("overdosed", "suicides", "filling", "billing", "milling", "tilling", "willing"),
        *("therapists", "helplines", "disappears", "overdoses", "exiting", "goodbyes"),
    )
)


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        raw: Its text as written.
        words: Its canonical words.
        question: Whether it asks.
        breaks: Indexes of the words that follow a comma, colon, dash or bracket.
    """

    raw: str
    words: tuple[str, ...]
    question: bool
    breaks: frozenset[int] = frozenset()


def clean(text: str) -> str:
    """Return text in Unicode's compatibility form, with plain quotes and nothing invisible."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_QUOTES)


def _one_edit(word: str) -> frozenset[str]:
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return frozenset(
        [a + b[1:] for a, b in cuts if b]
        + [a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1]
        + [a + c + b[1:] for a, b in cuts if b for c in "aeiou"]
        + [a + c + b for a, b in cuts for c in "aeiouls"]
    )


@lru_cache(maxsize=1)
def _misspellings() -> dict[str, str]:
    table = {edit: word for word in _KEY_WORDS for edit in _one_edit(word)}
    return {edit: word for edit, word in table.items() if edit not in _REAL | set(_KEY_WORDS)}


@lru_cache(maxsize=65536)
def _canonical(word: str) -> tuple[str, ...]:
    if word in _SHORT:
        return tuple(_SHORT[word].split())
    if word.endswith("n't"):
        return (*_canonical(word[:-3]), "not")
    stem, mark, tail = word.partition("'")
    if mark:
        if tail == "s":
            return (stem, "is") if stem in _IS_AFTER else (stem,)
        if "'" + tail in _TAIL:
            return (stem, _TAIL["'" + tail])
        return (stem,)
    return tuple(_SHORT.get(w, w) for w in (_misspellings().get(word, word),))


def words_of(text: str) -> tuple[str, ...]:
    """Return the canonical words of cleaned text.

    Example:
        >>> words_of("I'm d0ne, cant sleeeep")
        ('i', 'am', 'done', 'can', 'not', 'sleep')
    """
    low = _TWO.sub("to", text.lower()).replace("my self", "myself")
    low = _OBFUSCATED.sub(lambda m: m[0].translate(_LEET).replace("*", ""), low)
    low = _STRETCHED.sub(r"\1", _DOUBLED.sub(lambda m: 2 * (m[1] or m[2]), low))
    low = _NO_ONE.sub("nobody", low)
    return tuple(part for word in _WORD.findall(low) for part in _canonical(word))


@lru_cache(maxsize=8192)
def sentences(text: str) -> tuple[Sentence, ...]:
    """Split text into sentences with at least one word each."""
    text = _BANG.sub(r"\1i\2", clean(text))
    text = _ABBREVIATION.sub(lambda m: m[1].replace(".", ""), text)
    found = []
    for match in _SENTENCE.finditer(text):
        raw = match[0].strip()
        words: list[str] = []
        breaks = []
        for part in _BREAK.split(raw):
            if words:
                breaks.append(len(words))
            words += words_of(part)
        if words:
            found.append(Sentence(raw, tuple(words), "?" in raw, frozenset(breaks)))
    return tuple(found)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return a word without its commonest endings: sleeping, sleeps and sleep give one stem.

    Example:
        >>> stem("worried") == stem("worries") == stem("worrying") == stem("worry")
        True
    """
    for ending, least, put in (
        ("iness", 3, "y"), ("ness", 3, ""), ("ingly", 3, ""), ("ings", 3, ""), ("ing", 3, ""),
        ("edly", 3, ""), ("ied", 2, "y"), ("ies", 2, "y"), ("ily", 3, "y"), ("ed", 3, ""),
        ("ly", 4, ""), ("sses", 1, "ss"), ("es", 3, "e"), ("s", 3, ""),
    ):  # fmt: skip
        if (
            word.endswith(ending)
            and len(word) - len(ending) >= least
            and not (ending == "s" and word.endswith(("ss", "us", "is")))
        ):
            word = word[: -len(ending)] + put
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeosl":
        word = word[:-1]
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 2 and word.endswith("y") else word


def visible(text: str) -> str:
    """Without control, format and half characters, which can hide text from a reader."""
    return text.translate(_hidden())


@cache
def _hidden() -> Mapping[int, None]:
    kinds = ("Cc", "Cf", "Cs")
    return {
        code: None
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in kinds and chr(code) not in "\n\t"
    }
