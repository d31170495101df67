"""How far an evaluator can be believed: agreement with people's votes, recall and false alarms.

Every figure comes with an interval: pairs of answers to one question are not independent, so that
pair accuracy is resampled by question; shares of a fixed set of messages get Wilson's interval.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from reward.evaluator import Assessment, Evaluator
from reward.intervals import bootstrap_mean, wilson
from reward.risk import message_risk
from sft.data import Prompt
from sft.files import UserError

RESAMPLES = 1000


@dataclass(frozen=True)
class Answer:
    """A public answer to judge; it has a candidate's fields that an evaluator reads."""

    id: str
    prompt_id: str
    text: str
    votes: int
    stop: str = "eos"

    @property
    def words(self) -> int:
        """Number of words, split at white space."""
        return len(self.text.split())


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, the upvoted one first; scores are the evaluator's."""

    question: str
    better: Answer
    worse: Answer


def read_answers(path: Path) -> dict[str, tuple[Prompt, list[Answer]]]:
    """Read answers with votes (`title, question, topic, answer, upvotes`) by question.

    Raises:
        UserError: The file is missing, or a line lacks one of those fields.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; --data names a file of answers with upvotes (JSONL)"
        )
    grouped: dict[str, tuple[Prompt, list[Answer]]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                # A question was sometimes posted twice, under two ids: its title is the same.
                key, text, votes = row["title"].strip(), row["answer"], int(row["upvotes"])
                asked = f"{key}\n{row['question'] or ''}".strip()
                topic = row["topic"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}:{number}: not an answer with votes ({error!r})") from None
            message = [{"role": "user", "content": asked}]
            prompt = Prompt(key, message, path.name, topic, message_risk(message).risk, "held_out")
            grouped.setdefault(key, (prompt, []))[1].append(
                Answer(f"{key}-{number}", key, text, votes)
            )
    return grouped


def unequal_pairs(answers: Iterable[Sequence[Answer]]) -> Iterator[Pair]:
    """Yield every pair of answers to one question with unequal votes and unequal length."""
    for group in answers:
        for a, b in combinations(group, 2):
            if a.votes != b.votes and a.words != b.words:
                better, worse = (a, b) if a.votes > b.votes else (b, a)
                yield Pair(a.prompt_id, better, worse)


def length_matched(pairs: Iterable[Pair], within: float) -> list[Pair]:
    """Return the pairs whose longer answer is at most `within` (0..1) longer than the shorter."""
    return [
        p
        for p in pairs
        if max(p.better.words, p.worse.words) <= (1 + within) * min(p.better.words, p.worse.words)
    ]


def share_of(hits: int, n: int) -> Share:
    """Return hits / n with Wilson's interval; n = 0 says nothing: 0..1."""
    return Share(*wilson(hits, n), n) if n else Share(0.0, 0.0, 1.0, 0)


def clustered(scored: Sequence[tuple[str, float]], seed: int = 0) -> Share:
    """Return a mean over (cluster, value), its interval from resampling whole clusters."""
    if not scored:
        return Share(0.0, 0.0, 1.0, 0)
    values, clusters = [value for _, value in scored], [key for key, _ in scored]
    found = bootstrap_mean(values, clusters, n_resamples=RESAMPLES, seed=seed)
    return Share(*found, len(scored))


def pair_accuracy(pairs: Iterable[Pair], score: Callable[[Answer], float]) -> Share:
    """Return how often the upvoted answer scores higher (a tie counts half), by question."""
    return clustered(
        [(p.question, 0.5 + 0.5 * _sign(score(p.better) - score(p.worse))) for p in pairs]
    )


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def judge(
    evaluator: Evaluator, grouped: dict[str, tuple[Prompt, list[Answer]]]
) -> tuple[dict[str, Assessment], float]:
    """Assess every answer; return assessments by answer id, and assessments per second."""
    start = time.perf_counter()
    found = {
        a.candidate_id: a
        for prompt, answers in grouped.values()
        for a in evaluator.assess(prompt, answers)  # type: ignore[arg-type]
    }
    return found, len(found) / (time.perf_counter() - start)


def risk_figures(path: Path) -> dict[str, Share]:
    """Return recall by kind of crisis message, and false alarms, on written messages.

    `path` holds lines with `text`, `risk`, `kind` and `part`. Messages of part "look" were read
    while the patterns were written, those of part "blind" were written afterwards and never shaped
    one: only "blind" says what to expect of wording that nobody listed.
    """
    counts: dict[str, list[int]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            read = message_risk([{"role": "user", "content": row["text"]}]).risk
            names = {
                "crisis": [f"recall, {row['kind']} crisis"],
                "elevated": ["read as crisis, elevated", "noticed, elevated"],
                "none": ["read as crisis, no risk", "read as elevated, no risk"],
            }[row["risk"]]
            for name in names:
                hit = {
                    "recall": read == "crisis",
                    "read as crisis": read == "crisis",
                    "noticed": read != "none",
                    "read as elevated": read == "elevated",
                }[name.partition(",")[0]]
                counts.setdefault(f"{name} [{row['part']}]", []).append(hit)
    return {name: share_of(sum(hits), len(hits)) for name, hits in sorted(counts.items())}
