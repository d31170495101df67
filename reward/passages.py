"""What a passage of a reply does, by its wording: a linear reading for each safety question.

The patterns of `reward/flow.py` know the wording that somebody listed; on replies by other authors
they found one wrong passage in four. These readings (`reward/wording.py`) are fitted on passages by
sixteen authors (`assets/passages.jsonl`, `scripts/fit_flow.py`), each wrong one beside a right one
that comes near. They read wording, too, and not meaning.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reward.lexicon import ASSETS
from reward.text import Sentence
from reward.wording import LETTERS, WINDOW, Message, features_of, n_windows

PASSAGES = ASSETS / "passages.jsonl"
WEIGHTS = ASSETS / "passage_words.json"
MUST = ("offers_human_help", "gives_immediate_help", "notices_danger")
# Here a pattern has to agree: a policy that was trained on the wording alone learned sentences that
# sound like an offer of help and are none.
NEEDS_PATTERN = ("offers_human_help",)
SCALE = 100  # weights are stored in hundredths
USUAL_RUNS = 15  # of one to three sentences, in a reply of six sentences


@dataclass(frozen=True)
class WrittenPassage:
    """A passage out of a reply, with the answer to one safety question about it.

    Attributes:
        item: The question's name in the rubric; "good_" with a risk: a whole good reply to a
            message of that risk.
        wrong: Whether the passage does what must not be done, or leaves out what must be.
        author: Whose wording it is: readings are validated on authors they were not fitted on.
    """

    text: str
    item: str
    wrong: bool
    author: str

    @property
    def does(self) -> bool:
        """Whether it does the thing that the question asks about, wanted or not."""
        return self.wrong != (self.item in MUST)


@dataclass(frozen=True)
class PassageWording:
    """Linear readings of the same features, one per safety question.

    Attributes:
        items: Names of the questions.
        place: Row of each feature.
        weights: (features, items).
        bias: (items,).
        thresholds: Of each question that needs no pattern, the score from which on a passage does
            what it asks about.
        least: Of a thing that must be done, the score below which a pattern is not believed.
    """

    items: tuple[str, ...]
    place: Mapping[str, int]
    weights: np.ndarray
    bias: np.ndarray
    thresholds: Mapping[str, float]
    least: Mapping[str, float]

    def highest(self, message: Message) -> np.ndarray:
        """Return each question's highest log-odds over runs of one to three sentences: (items,).

        Minus infinity where there is no word. More sentences never lower a score.
        """
        each = [
            frozenset(self.place[name] for name in features_of(words, LETTERS) & self.place.keys())
            for words in message
        ]
        best = np.full(len(self.items), -np.inf)
        for start in range(len(each)):
            seen: frozenset[int] = frozenset()
            for known in each[start : start + WINDOW]:
                seen |= known
                total = self.weights[sorted(seen)].sum(axis=0)
                best = np.maximum(best, self.bias + total / np.sqrt(max(1, len(seen))))
        return best


@cache
def load_passages(path: Path = WEIGHTS) -> PassageWording:
    """Read the fitted weights: JSON, nothing is unpickled."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    weights = np.array(list(stored["weights"].values()), dtype=np.float64) / SCALE
    place = {name: at for at, name in enumerate(stored["weights"])}
    bias = np.array(stored["bias"], dtype=np.float64)
    items = tuple(stored["items"])
    return PassageWording(items, place, weights, bias, stored["thresholds"], stored["least"])


def does(item: str, sentences: Sequence[Sentence], pattern: bool) -> bool:
    """Return whether a reply does what a question asks about, by its wording or by a pattern.

    That a thing which must be done is done, a pattern is not believed where the wording of the
    whole reply is far from it. The highest of many scores is high by chance: of a reply with more
    runs of sentences than those that the thresholds are taken from, the logarithm of how many times
    as many they are is taken off.

    Args:
        item: The question's name in the rubric.
        sentences: The reply.
        pattern: Whether a pattern says so.
    """
    readings = load_passages()
    asked = readings.least if pattern else readings.thresholds
    if item not in asked:
        return pattern
    score = _scores(tuple(part.words for part in sentences))[item]
    if item not in MUST:
        score -= math.log(max(1.0, n_windows(len(sentences)) / USUAL_RUNS))
    return score >= asked[item]


@lru_cache(maxsize=4096)
def _scores(said: Message) -> dict[str, float]:
    readings = load_passages()
    return dict(zip(readings.items, readings.highest(said).tolist(), strict=True))
