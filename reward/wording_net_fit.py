"""Fits the convolutional reading of wording (`reward/wording_net.py`)."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward.wording import Message
from reward.wording_fit import folds
from reward.wording_net import WIDTHS, Net, WordingNet, load_vectors, rows_of

N_NETS = 2
OFTEN = 20  # times that a word must be fitted on to get numbers of its own
CHANNELS = 96
RATE, DECAY, SMOOTHING = 3e-3, 0.05, 0.05
BLANKED, DROPPED, DROPPED_LAST = 0.1, 0.2, 0.5  # of words; of their numbers; of what is highest
Rows = tuple[np.ndarray, np.ndarray]  # of one text, see `rows_of`


@dataclass(frozen=True)
class Course:
    """How long a network learns: passes over the texts, texts of a batch, and of like length."""

    epochs: int = 8
    batch: int = 64
    sorted: int = 640  # batches hold texts of like length out of these


COURSE = Course()


class _Trained(nn.Module):
    """`Net` while it is fitted; reads batches of rows, padded with minus two."""

    def __init__(self, n_known: int, n_classes: int) -> None:
        super().__init__()
        vectors = torch.from_numpy(load_vectors().rows)
        size = vectors.shape[1]
        self.vectors: nn.Module = nn.Embedding(len(vectors), size, _weight=vectors, _freeze=True)
        self.own = nn.Embedding(n_known + 2, size)
        nn.init.normal_(self.own.weight, std=0.1)
        convolutions = [nn.Conv1d(size, CHANNELS, width, padding=width // 2) for width in WIDTHS]
        self.convolutions: nn.ModuleList = nn.ModuleList(convolutions)
        self.out = nn.Linear(len(WIDTHS) * CHANNELS, n_classes)

    def forward(self, vectors: Tensor, own: Tensor) -> Tensor:
        """Return scores, (texts, classes), of rows of words, (texts, words) each."""
        there = vectors >= 0
        seen = self.vectors(vectors.clamp(min=0))
        seen = seen + self.own(own.clamp(min=0)) * (own >= 0)[..., None]
        if self.training:
            there_kept = there & (torch.rand(there.shape) > BLANKED)
            seen = F.dropout(seen * there_kept[..., None], DROPPED)
        seen = (seen * there[..., None]).transpose(1, 2)
        found = [F.relu(layer(seen)[..., : there.shape[1]]) for layer in self._convolutions()]
        highest = torch.cat([(each * there[:, None]).amax(2) for each in found], 1)
        return self.out(F.dropout(highest, DROPPED_LAST, self.training))

    def _convolutions(self) -> list[nn.Conv1d]:
        return [part for part in self.convolutions if isinstance(part, nn.Conv1d)]

    def weights(self) -> Net:
        """Return the weights for reading."""
        kernels = [part.weight.permute(2, 1, 0).flatten(0, 1) for part in self._convolutions()]
        return Net(
            _array(self.own.weight),
            tuple(_array(kernel) for kernel in kernels),
            tuple(_array(part.bias) for part in self._convolutions()),
            _array(self.out.weight.T),
            _array(self.out.bias),
        )


def fit_net(
    messages: Sequence[Message],
    classes: Sequence[int],
    n_nets: int = N_NETS,
    course: Course = COURSE,
) -> WordingNet:
    """Fit networks that tell the classes of texts apart.

    The same texts give the same weights on the same machine, however many processes fit.

    Args:
        messages: Texts, see `reward.risk.plain_words`.
        classes: Of each text, from 0.
        n_nets: Networks, of different seeds.
        course: How long each learns.
    """
    with _workers() as workers:
        return _begun(workers, messages, classes, n_nets, course)()


def cross_nets(
    messages: Sequence[Message],
    classes: Sequence[int],
    more: Sequence[tuple[Message, int]],
    families: Sequence[str],
    n_nets: int = N_NETS,
    course: Course = COURSE,
) -> Iterator[tuple[np.ndarray, WordingNet]]:
    """Yield networks that know nothing of some families, with the numbers of these texts.

    Args:
        messages: Texts.
        classes: Of each text.
        more: Texts, each with its class, that every fold is fitted on besides.
        families: Of each text; a family is left out as a whole.
        n_nets: Networks.
        course: How long each learns.
    """
    begun = []
    with _workers() as workers:
        for out in folds(families):
            kept = np.setdiff1d(np.arange(len(messages)), out)
            texts = [*(messages[i] for i in kept), *(message for message, _ in more)]
            told = [*(classes[i] for i in kept), *(label for _, label in more)]
            begun.append((out, _begun(workers, texts, told, n_nets, course)))
        for out, ended in begun:
            yield out, ended()


def _workers() -> ProcessPoolExecutor:
    """Processes that fit a network each; more threads make one of this size hardly faster."""
    spawned = get_context("spawn")  # torch's threads do not outlive a fork
    one = partial(torch.set_num_threads, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(min(cores or 1, 16), mp_context=spawned, initializer=one)


def _begun(
    workers: Executor,
    messages: Sequence[Message],
    classes: Sequence[int],
    n_nets: int,
    course: Course,
) -> Callable[[], WordingNet]:
    """Begin to fit networks; what is returned waits for them."""
    counts = Counter(word for message in messages for said in message for word in said)
    known = [word for word, n in counts.most_common() if n >= OFTEN]
    place = {word: at for at, word in enumerate(known, 2)}
    rows = [rows_of(message, place)[0] for message in messages]
    told = np.asarray(classes)
    fixed = (rows, told, len(known), course)
    begun = [workers.submit(_fitted, *fixed, seed) for seed in range(n_nets)]
    return lambda: WordingNet(place, tuple(each.result() for each in begun))


def _fitted(rows: Sequence[Rows], told: np.ndarray, n_known: int, course: Course, seed: int) -> Net:
    torch.manual_seed(seed)
    net = _Trained(n_known, int(told.max()) + 1)
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=DECAY)
    epochs = range(course.epochs)
    steps = [batch for epoch in epochs for batch in _batches(rows, course, (seed, epoch))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(steps) + 1)
    for batch in steps:
        scores = net(*_padded([rows[i] for i in batch]))
        labels = torch.from_numpy(told[batch])
        loss = F.cross_entropy(scores, labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.weights()


def _batches(rows: Sequence[Rows], course: Course, seed: tuple[int, int]) -> Iterator[list[int]]:
    """Yield the numbers of the texts of each batch, each text once."""
    order = list(range(len(rows)))
    random.Random(str(seed)).shuffle(order)
    for start in range(0, len(order), course.sorted):
        some = sorted(order[start : start + course.sorted], key=lambda i: len(rows[i][0]))
        yield from (some[at : at + course.batch] for at in range(0, len(some), course.batch))


def _padded(rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    longest = max(len(vectors) for vectors, _ in rows)
    parts = (
        [np.pad(part, (0, longest - len(part)), constant_values=-2) for part in both]
        for both in zip(*rows, strict=True)
    )
    vectors, own = (torch.from_numpy(np.stack(part)) for part in parts)
    return vectors, own


def _array(weight: Tensor | None) -> np.ndarray:
    assert weight is not None
    return weight.detach().numpy().copy()
