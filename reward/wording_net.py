"""A reading of wording by a small convolutional network, beside the linear one.

The linear reading (`reward/wording.py`) knows the words that it was fitted on; here a word is a
vector that was learned from six billion words of other English, so that what is said in a word
that nobody wrote down is near to one that somebody did. Convolutions over one to five words, the
highest of each over the text, one layer (Kim 2014, "Convolutional Neural Networks for Sentence
Classification", section 2), several networks averaged. Fitted by `reward/wording_net_fit.py`; read
with NumPy, without torch.

The vectors: GloVe, 6 B tokens, 100 dimensions (Pennington, Socher and Manning 2014; Public Domain
Dedication and License 1.0), cut to the commonest words and 64 principal dimensions by
`scripts/word_vectors.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.wording import Message

VECTORS = ASSETS / "word_vectors.npz"
NETWORKS = ASSETS / "risk_net.npz"
WIDTHS = (1, 2, 3, 5)  # words that a convolution sees
STEPS = 31.75  # a stored vector's whole numbers are this many to one
PIECE = 256  # words and edges that are read at once; of longer texts, overlapping pieces by half


@dataclass(frozen=True)
class Vectors:
    """Word vectors; row 0 is of words without one, row 1 of a sentence's edge, both zero.

    Attributes:
        place: Row of each word.
        rows: (words + 2, dimensions), of standard deviation 1.
    """

    place: Mapping[str, int]
    rows: np.ndarray


@cache
def load_vectors(path: Path = VECTORS) -> Vectors:
    """Read the stored vectors; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        words, rows = stored["words"].tolist(), stored["vectors"].astype(np.float32) / STEPS
    empty = np.zeros((2, rows.shape[1]), np.float32)
    return Vectors({word: at for at, word in enumerate(words, 2)}, np.concatenate([empty, rows]))


@dataclass(frozen=True)
class Net:
    """Weights of one network.

    Attributes:
        own: (known words + 2, dimensions) added to the vectors of the words of `WordingNet.known`;
            row 0 of words that are not known, row 1 of a sentence's edge.
        kernels: Of each width, (width x dimensions, channels).
        offsets: Of each width, (channels,).
        out: (widths x channels, classes).
        bias: (classes,).
    """

    own: np.ndarray
    kernels: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]
    out: np.ndarray
    bias: np.ndarray

    def logits(self, vectors: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return each class's logit for one text.

        Args:
            vectors: (words, dimensions) of the text's words.
            own: (words,) rows of `own`, minus one of a word that is common but not known.

        Returns:
            (classes,).
        """
        added = np.where(own[:, None] >= 0, self.own[own], np.float32(0))
        seen, highest = vectors + added, []
        for width, kernel, offset in zip(WIDTHS, self.kernels, self.offsets, strict=True):
            before = width // 2
            padded = np.pad(seen, ((before, width - 1 - before), (0, 0)))
            runs = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
            runs = runs.swapaxes(1, 2).reshape(len(seen), -1)
            highest.append(np.maximum(runs @ kernel + offset, 0).max(axis=0))
        return np.concatenate(highest) @ self.out + self.bias


@dataclass(frozen=True)
class WordingNet:
    """Several networks that read the same words.

    Attributes:
        known: Row in `Net.own` of each word that the fitted texts have often.
        nets: The networks.
    """

    known: Mapping[str, int]
    nets: tuple[Net, ...]

    def log_shares(self, message: Message) -> np.ndarray:
        """Return the mean of the networks' log-probabilities of each class: (classes,).

        Of a text that is longer than `PIECE`, those of the piece least like the first class.

        Args:
            message: The words of each sentence, see `reward.risk.plain_words`.
        """
        each = [self._piece(*rows) for rows in rows_of(message, self.known)]
        return min(each, key=lambda shares: float(shares[0]))

    def _piece(self, vectors: np.ndarray, own: np.ndarray) -> np.ndarray:
        read = load_vectors().rows[vectors]
        scores = np.stack([net.logits(read, own) for net in self.nets]).astype(np.float64)
        top = scores.max(axis=1, keepdims=True)
        each = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        return np.asarray(each.mean(axis=0))


def rows_of(message: Message, known: Mapping[str, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows in `Vectors` and in `Net.own` of a text's words and edges, (words,) each.

    One pair for each piece of at most `PIECE`.
    """
    place = load_vectors().place
    vectors, own = [1], [1]
    for sentence in message:
        vectors += [*(place.get(word, 0) for word in sentence), 1]
        own += [*(known.get(word, -1 if word in place else 0) for word in sentence), 1]
    starts = range(0, max(1, len(vectors) - PIECE // 2), PIECE // 2)
    ends = [(start, start + PIECE) for start in starts]
    return [(np.array(vectors[a:b]), np.array(own[a:b])) for a, b in ends]


@cache
def load_net(path: Path = NETWORKS) -> WordingNet:
    """Read the fitted weights; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    known = {word: at for at, word in enumerate(arrays.pop("known").tolist(), 2)}
    nets = []
    for at in range(len(arrays) // len(_names(0))):
        own, out, bias, *rest = (arrays[name].astype(np.float32) for name in _names(at))
        nets.append(Net(own, tuple(rest[::2]), tuple(rest[1::2]), out, bias))
    return WordingNet(known, tuple(nets))


def save_net(net: WordingNet, path: Path) -> None:
    """Write the weights in 16 bits."""
    arrays = {"known": np.array(list(net.known))}
    for at, one in enumerate(net.nets):
        pairs = zip(one.kernels, one.offsets, strict=True)
        parts = [one.own, one.out, one.bias, *(part for pair in pairs for part in pair)]
        arrays |= {
            name: part.astype(np.float16) for name, part in zip(_names(at), parts, strict=True)
        }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # names are no options


def _names(at: int) -> list[str]:
    each = [f"{at}.{part}{width}" for width in WIDTHS for part in ("kernel", "offset")]
    return [f"{at}.own", f"{at}.out", f"{at}.bias", *each]
