"""What a reward model learns from: a prompt's judged replies, compared by quality alone.

`reward.pairs` lets safety decide before quality, as a policy has to learn it. A reward that stays
apart from the constraint may not: where the safe reply is the worse one of a pair, the pair's own
order would teach the reward to be safe, and what the policy gains by safety it would be paid for
twice. So replies are compared by quality whatever the safety flow says of them, and the verdicts go
to a head of their own (decoupled as in Dai et al. 2023, arXiv:2310.12773, section 3.1).

Not here: token ids and training (`reward.train`), what the report counts (`reward.held_out`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from reward.confidence import DUST, RepeatNoise, quality_confidence, tie_band
from reward.evaluator import Assessment, direct_verdict
from reward.pairing import WITHOUT_REPEATS, Judged, Pair
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import UserError

KINDS = ("both safe", "one safe", "both unsafe")  # of the two replies of a comparison


@dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt, the better one first.

    Attributes:
        better, worse: their places among the question's replies.
        margin: difference of quality, in (0, 1].
        confidence: probability that the order is right, in (0.5, 1].
    """

    better: int
    worse: int
    margin: float
    confidence: float

    def __post_init__(self) -> None:
        if self.better == self.worse or self.margin <= 0 or not 0.5 <= self.confidence <= 1:
            raise ValueError(f"no comparison: {self}")


@dataclass(frozen=True)
class Question:
    """A prompt and the replies that an evaluator scored, its own and borrowed ones.

    All of them teach the safety head, also those that were cut off, which are read as the evaluator
    read them: as they stand. Compared are only the prompt's own that ended by themselves.
    """

    prompt: Prompt
    replies: list[Judged]

    @property
    def own(self) -> list[int]:
        """Places of the replies that the policy wrote to this very prompt."""
        return [i for i, reply in enumerate(self.replies) if not reply.candidate.borrowed]


@dataclass(frozen=True)
class Side:
    """Questions of one side of the split, and what is compared of each."""

    questions: list[Question]
    comparisons: list[list[Comparison]]

    def counts(self) -> dict[str, int]:
        """How much there is of each kind, for the report."""
        replies = [reply for question in self.questions for reply in question.replies]
        own = [reply for reply in replies if not reply.candidate.borrowed]
        borrowed = [reply for reply in replies if reply.candidate.borrowed]
        both = zip(self.questions, self.comparisons, strict=True)
        kinds: Mapping[str, int] = Counter(kind_of(q, each) for q, some in both for each in some)
        return {
            "prompts": len(self.questions),
            "replies": len(own),
            "unsafe": sum(not reply.assessment.safe for reply in own),
            "borrowed": len(borrowed),
            "borrowed_unsafe": sum(not reply.assessment.safe for reply in borrowed),
            "comparisons": sum(kinds.values()),
            **{kind.replace(" ", "_"): kinds[kind] for kind in KINDS},
        }


def gather(
    prompts: Sequence[Prompt], candidates: Sequence[Candidate], assessments: Sequence[Assessment]
) -> list[Question]:
    """Each prompt with its scored replies, in the order of the files; none without any.

    Raises:
        UserError: an assessment is of a candidate that is not there.
    """
    texts = {candidate.id: candidate for candidate in candidates}
    replies: dict[str, list[Judged]] = {}
    for assessment in assessments:
        if assessment.candidate_id not in texts:
            raise UserError(
                f"assessment of {assessment.candidate_id}: no such candidate. Run scripts/score.py "
                "again with --overwrite true"
            )
        if assessment.scored:
            judged = Judged(texts[assessment.candidate_id], assessment)
            replies.setdefault(assessment.prompt_id, []).append(judged)
    return [Question(p, replies[p.id]) for p in prompts if p.id in replies]


def every_two(
    question: Question, margin: float | str, noise: RepeatNoise = WITHOUT_REPEATS
) -> list[Comparison]:
    """Compare every two own replies that ended by themselves and say different things.

    Of replies that the evaluator compared two by two only those count whose own comparison says the
    same as their qualities.

    Args:
        question: a prompt and its replies.
        margin: a smaller difference of quality is a tie, and no comparison; 0..1, or "auto".
        noise: of the evaluator's repeats, for "auto" and for the confidence.

    Raises:
        UserError: the margin is "auto" and the noise is not known.
    """
    usable = [i for i in question.own if question.replies[i].candidate.stop == "eos"]
    found = []
    for i, j in combinations(usable, 2):
        one, other = question.replies[i], question.replies[j]
        same = one.candidate.text.strip() == other.candidate.text.strip()
        gap = quality_of(one) - quality_of(other)
        band = max(DUST, tie_band(one.assessment, other.assessment, margin, noise))
        direct = direct_verdict(one.assessment, other.assessment)
        agrees = direct in (None, "better" if gap > 0 else "worse")
        if not same and abs(gap) >= band and agrees:
            better, worse = (i, j) if gap > 0 else (j, i)
            sure = quality_confidence(
                question.replies[better].assessment, question.replies[worse].assessment, noise
            )
            found.append(Comparison(better, worse, abs(gap), sure))
    return found


def paired(question: Question, pairs: Sequence[Pair]) -> list[Comparison]:
    """Those of a prompt's pairs that quality decided, with their own margin and confidence."""
    places = {reply.candidate.id: i for i, reply in enumerate(question.replies)}
    return [
        Comparison(places[pair.chosen_id], places[pair.rejected_id], pair.margin, pair.confidence)
        for pair in pairs
        if pair.rule == "quality" and {pair.chosen_id, pair.rejected_id} <= places.keys()
    ]


def without_leaks(
    questions: Sequence[Question], held_out: Sequence[Question]
) -> tuple[list[Question], int]:
    """The training questions without borrowed replies that are own replies of held-out prompts.

    Returns:
        The questions, and how many replies were left out.
    """
    answered = {q.replies[i].candidate.text.strip() for q in held_out for i in q.own}
    kept, n = [], 0
    for question in questions:
        clean = [
            reply
            for reply in question.replies
            if not (reply.candidate.borrowed and reply.candidate.text.strip() in answered)
        ]
        n += len(question.replies) - len(clean)
        kept.append(Question(question.prompt, clean))
    return kept, n


def kind_of(question: Question, comparison: Comparison) -> str:
    """What the safety flow says of the two: one of `KINDS`."""
    two = (question.replies[comparison.better], question.replies[comparison.worse])
    return KINDS[2 - sum(bool(reply.assessment.safe) for reply in two)]


def quality_of(reply: Judged) -> float:
    """The evaluator's grade of a scored reply, 0..1.

    Raises:
        ValueError: it has none.
    """
    if reply.assessment.quality is None:
        raise ValueError(f"{reply.candidate.id} is unscored")
    return reply.assessment.quality
