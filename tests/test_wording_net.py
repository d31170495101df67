"""The convolutional reading of wording: what is fitted is what is read, and near words count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reward import wording_net_fit
from reward.risk import message_risk, risk_scores
from reward.risk_cues import pattern_cues
from reward.wording_net import PIECE, load_net, load_vectors, rows_of, save_net
from reward.wording_net_fit import Course, cross_nets, fit_net

ANIMALS = ("dog", "cat", "horse", "cow", "sheep", "goat", "rabbit", "pig")
TOOLS = ("hammer", "drill", "saw", "screwdriver", "ladder", "shovel", "chisel", "axe")
SAID = [[("my", thing, "is", "old")] for thing in (*ANIMALS, *TOOLS)] * 4
CLASSES = [int(message[0][1] in TOOLS) for message in SAID]
SMALL = Course(epochs=12, batch=8)


@pytest.fixture(scope="module")
def toy():
    return fit_net(SAID, CLASSES, n_nets=2, course=SMALL)


def test_words_that_nobody_fitted_are_read_by_those_near_them(toy) -> None:
    for word, kind in (("puppy", 0), ("donkey", 0), ("wrench", 1), ("pliers", 1)):
        assert word not in toy.known
        assert np.argmax(toy.log_shares([("my", word, "is", "old")])) == kind, word


def test_shares_are_log_probabilities(toy) -> None:
    one = replace(toy, nets=toy.nets[:1])
    assert np.exp(one.log_shares(SAID[0])).sum() == pytest.approx(1)
    both = [replace(toy, nets=(net,)).log_shares(SAID[0]) for net in toy.nets]
    assert toy.log_shares(SAID[0]) == pytest.approx(np.mean(both, axis=0))


def test_numpy_reads_what_torch_fits() -> None:
    torch.manual_seed(3)
    trained = wording_net_fit._Trained(n_known=3, n_classes=3).eval()
    known = {"dog": 2, "my": 3, "old": 4}
    messages = [[("my", "dog", "xyzzy"), ("old",)], [("cat",)], [], *SAID[:3]]
    rows = [rows_of(message, known)[0] for message in messages]
    with torch.no_grad():
        wanted = trained(*wording_net_fit._padded(rows)).numpy()
    read = [trained.weights().logits(load_vectors().rows[v], own) for v, own in rows]
    assert np.stack(read) == pytest.approx(wanted, abs=1e-5)


def test_the_same_texts_give_the_same_weights() -> None:
    course = Course(epochs=1)
    first, second = (fit_net(SAID, CLASSES, n_nets=1, course=course).nets[0] for _ in range(2))
    assert np.array_equal(first.own, second.own) and np.array_equal(first.out, second.out)


def test_cross_validation_knows_nothing_of_a_family_left_out() -> None:
    families = [message[0][1] for message in SAID]
    # Labels that only the word itself tells: who has not seen it cannot know.
    told = [int(word in ("dog", "hammer")) for word in families]
    found = np.zeros((len(SAID), 2))
    for out, net in cross_nets(SAID, told, [], families, n_nets=1, course=SMALL):
        found[out] = [net.log_shares(SAID[at]) for at in out]
    seen = fit_net(SAID, told, n_nets=1, course=SMALL)
    left_out = [found[at, 1] for at, label in enumerate(told) if label]
    known = [seen.log_shares(SAID[at])[1] for at, label in enumerate(told) if label]
    assert np.mean(left_out) < np.log(0.5) < np.mean(known)


def test_stored_weights_read_alike(toy, tmp_path: Path) -> None:
    save_net(toy, tmp_path / "net.npz")
    stored = load_net(tmp_path / "net.npz")
    assert stored.known == toy.known
    for message in SAID[:16]:
        assert stored.log_shares(message) == pytest.approx(toy.log_shares(message), abs=0.01)


def test_what_is_said_late_in_a_very_long_text_is_read(toy) -> None:
    calm = [("my", "dog", "is", "old")] * 120
    pieces = rows_of(calm, toy.known)
    assert len(pieces) > 2 and all(len(own) <= PIECE for _, own in pieces)
    assert np.argmax(toy.log_shares(calm)) == 0
    late = toy.log_shares([*calm, ("my", "hammer", "is", "old"), ("my", "drill", "is", "old")])
    assert late[1] > toy.log_shares(calm)[1] + 1
    assert np.isfinite(toy.log_shares([])).all()


def test_vectors_of_like_words_are_near() -> None:
    vectors = load_vectors()

    def near(first: str, second: str) -> float:
        one, two = (vectors.rows[vectors.place[word]] for word in (first, second))
        return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))

    assert near("sad", "unhappy") > near("sad", "lorry") + 0.2
    assert near("pills", "tablets") > near("pills", "mountain") + 0.2
    assert not vectors.rows[:2].any()  # unknown words, and edges


def test_any_risk_is_read_from_words_without_a_pattern() -> None:
    text = "He locks me in the flat when he goes out and takes my phone."
    assert not pattern_cues(text)
    reading = message_risk([{"role": "user", "content": text}])
    assert reading.risk == "elevated" and reading.cues[0].startswith("wording: ")
    calm = "I have left the house early for a run by the sea."
    assert risk_scores(text)[1] > risk_scores(calm)[1]
