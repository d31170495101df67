"""How far an evaluator agrees with people, with a word count and people themselves beside it.

Every function takes labels (`reward.labels`) and a score per reply, and gives figures whose
intervals draw whole prompts. Not here: what else an evaluator has to withstand (`reward.probes`),
what counts as validated (`reward.judge_card`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward.coefficients import chance_corrected, rank_correlation, rank_lead
from reward.evaluator import HIGHEST_GRADE, LOWEST_GRADE, Assessment
from reward.figures import Figure, clustered
from reward.labels import (
    QUALITY,
    Labels,
    Pair,
    Scale,
    between_raters,
    one_against_rest,
    sign,
)

Scores = Mapping[str, float]  # grade 1..5, or number of words, by reply

TIE = 0.08  # on 1..5: grades that are nearer than 2 % of the range are a tie
NO_SECOND = "no reply was labelled by two named people"
_LEVEL_KINDS = ("share", "coefficient", "coefficient")  # of what `chance_corrected` returns
NO_SCALE = "votes are counts: they have no scale of grades"


@dataclass(frozen=True)
class Line:
    """One measure of agreement, and what it is to be held against.

    Attributes:
        name: What was measured.
        kind: How to write it: a "share" of cases, a "coefficient" -1..1, or "points" on 1..5.
        evaluator: The evaluator against people.
        words: The number of words against people.
        people: One person against the others: the ceiling.
    """

    name: str
    kind: str
    evaluator: Figure
    words: Figure | None = None
    people: Figure | None = None


def grade_of(assessment: Assessment, judged_as: str) -> float | None:
    """Return what an assessment says on 1..5: its quality or a criterion; None where it does not.

    Example:
        >>> verdict = Assessment("c", "p", {"empathy": 4.0}, 0.75, True, [], "", "j", "r@1", None)
        >>> grade_of(verdict, "quality"), grade_of(verdict, "accuracy")
        (4.0, None)
    """
    if assessment.quality is None:
        return None
    if judged_as == QUALITY:
        return LOWEST_GRADE + (HIGHEST_GRADE - LOWEST_GRADE) * assessment.quality
    return assessment.criteria.get(judged_as)


def scores_of(assessments: Mapping[str, Assessment], judged_as: str) -> dict[str, float]:
    """Return the grades 1..5 of all replies that have one."""
    grades = ((reply, grade_of(a, judged_as)) for reply, a in assessments.items())
    return {reply: grade for reply, grade in grades if grade is not None}


def hits(pairs: Sequence[Pair], scores: Scores) -> list[tuple[str, float]]:
    """Return (prompt, hit) of each scored pair: 1 in people's order, 0.5 for equal scores, or 0."""
    return [
        (p.prompt, 0.5 + 0.5 * sign(scores[p.better] - scores[p.worse]))
        for p in pairs
        if p.better in scores and p.worse in scores
    ]


def lead(pairs: Sequence[Pair], scores: Scores, words: Scores) -> Figure:
    """Return how much more often the scores are right than a word count, on the same pairs."""
    both = [p for p in pairs if p.better in scores and p.worse in scores]
    ours, theirs = hits(both, scores), hits(both, words)
    gaps = [(prompt, a - b) for (prompt, a), (_, b) in zip(ours, theirs, strict=True)]
    return clustered(gaps, missing="no pair to compare", share=False)


def lead_in_rank(labels: Labels, criterion: str, scores: Scores) -> Figure:
    """Return how much higher the scores correlate with people's grades than a word count does."""
    mean = {r: v for r, v in labels.consensus(criterion).items() if r in scores}
    return rank_lead(
        [scores[r] for r in mean],
        [float(labels.words(r)) for r in mean],
        list(mean.values()),
        [labels.replies[r].prompt_id for r in mean],
        within=not labels.scales[criterion].comparable,
        missing="too few unequal replies",
    )


def agreement_lines(
    labels: Labels, criterion: str, scores: Scores, safe: Mapping[str, bool]
) -> list[Line]:
    """Return every measure of agreement on one labelled criterion.

    Args:
        labels: What people said.
        criterion: One of `labels.scales`.
        scores: The evaluator's grade 1..5 of the same thing, by reply.
        safe: The evaluator's verdict by reply.
    """
    return [
        *_pair_lines(labels, criterion, scores, safe),
        _rank_line(labels, criterion, scores),
        *_level_lines(labels, criterion, scores),
        _offset_line(labels, criterion, scores),
    ]


def _pair_lines(
    labels: Labels, criterion: str, scores: Scores, safe: Mapping[str, bool]
) -> list[Line]:
    words = {reply: float(labels.words(reply)) for reply in labels.replies}
    every = labels.unequal_length(labels.preferred(criterion))
    pairs = [p for p in every if p.better in scores and p.worse in scores]
    none = "no two replies to one prompt that people hold unequal"
    ceiling = clustered(list(one_against_rest(labels, criterion)), missing=NO_SECOND)
    made = []
    for name, some, people in (
        ("pair accuracy", pairs, ceiling),
        ("pair accuracy, lengths within 20 %", labels.like_length(pairs, 0.2), None),
        ("pair accuracy, lengths within 10 %", labels.like_length(pairs, 0.1), None),
    ):
        evaluator = clustered(hits(some, scores), missing=none)
        baseline = clustered(hits(some, words), missing=none)
        made.append(Line(name, "share", evaluator, baseline, people))
    if labels.scales[criterion].judged_as == QUALITY:
        first = {r: s + (HIGHEST_GRADE if safe[r] else 0.0) for r, s in scores.items()}
        figure = clustered(hits(pairs, first), missing=none)
        made.append(Line("pair accuracy, safe before quality", "share", figure))
    return made


def _rank_line(labels: Labels, criterion: str, scores: Scores) -> Line:
    within = not labels.scales[criterion].comparable
    said = labels.by_rater(criterion)
    mean = {r: v for r, v in labels.consensus(criterion).items() if r in scores}
    prompts = [labels.replies[r].prompt_id for r in mean]
    none = "choices between two have no grades" if not said else "too few unequal replies"

    def against(values: Sequence[float]) -> Figure:
        people = list(mean.values())
        return rank_correlation(values, people, prompts, within=within, missing=none)

    rows = [
        (labels.replies[reply].prompt_id, value, (sum(given.values()) - value) / (len(given) - 1))
        for reply, given in said.items()
        for value in given.values()
        if len(given) > 1
    ]
    people = rank_correlation(
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[0] for row in rows],
        within=within,
        missing=NO_SECOND,
    )
    return Line(
        "rank correlation" + (" within a prompt" if within else ""),
        "coefficient",
        against([scores[r] for r in mean]),
        against([float(labels.words(r)) for r in mean]),
        people,
    )


def _level_lines(labels: Labels, criterion: str, scores: Scores) -> list[Line]:
    scale, choices = labels.scales[criterion], labels.choices_of(criterion)
    if scale.low is None or scale.high is None:
        missing = chance_corrected([], [], NO_SCALE)
        return [Line(n, k, missing[n]) for n, k in zip(missing, _LEVEL_KINDS, strict=True)]
    prompt_of = {reply: candidate.prompt_id for reply, candidate in labels.replies.items()}
    if choices:
        levels: list[float] = [0.0, 0.5, 1.0]
        rated = [
            (prompt_of[a], _middle(sum(said.values()) / len(said)), _order(scores[a] - scores[b]))
            for (a, b), said in choices.items()
            if a in scores and b in scores
        ]
        between = between_raters(
            {f"{a}\n{b}": said for (a, b), said in choices.items()},
            {f"{a}\n{b}": prompt_of[a] for a, b in choices},
        )
    else:
        levels = [float(x) for x in range(int(scale.low), int(scale.high) + 1)]
        rated = [
            (prompt_of[r], _rounded(mean), to_level(scale, scores[r]))
            for r, mean in labels.consensus(criterion).items()
            if r in scores
        ]
        graded = labels.by_rater(criterion)
        whole = {r: {w: _rounded(v) for w, v in said.items()} for r, said in graded.items()}
        between = between_raters(whole, prompt_of)
    ours = chance_corrected(rated, levels, "no labelled reply has a score")
    theirs = chance_corrected(between, levels, NO_SECOND)
    return [
        Line(name, kind, ours[name], None, theirs[name])
        for name, kind in zip(ours, _LEVEL_KINDS, strict=True)
    ]


def _order(gap: float) -> float:
    return 0.5 if abs(gap) < TIE else float(gap > 0)


def _middle(mean: float) -> float:
    return 0.5 + 0.5 * sign(mean - 0.5)


def _rounded(value: float) -> float:
    return float(math.floor(value + 0.5))


def to_level(scale: Scale, score: float) -> float:
    """Return the level of the labels' scale that a grade on 1..5 comes nearest to.

    Example:
        >>> to_level(Scale("empathy", 0, 2), 4.1)
        2.0

    Raises:
        ValueError: The labels have no scale.
    """
    if scale.low is None or scale.high is None:
        raise ValueError("labels without a scale have no levels")
    return _rounded(scale.low + (score - LOWEST_GRADE) / 4 * (scale.high - scale.low))


def _offset_line(labels: Labels, criterion: str, scores: Scores) -> Line:
    scale = labels.scales[criterion]
    missing = NO_SCALE if scale.low is None else "choices between two have no grades"
    gaps = [
        (labels.replies[reply].prompt_id, scores[reply] - scale.on_five(mean))
        for reply, mean in labels.consensus(criterion).items()
        if reply in scores and scale.low is not None
    ]
    return Line("calibration offset", "points", clustered(gaps, missing=missing, share=False))


def length_lines(labels: Labels, found: Mapping[str, Assessment]) -> list[Line]:
    """Return the rank correlation of words with the evaluator's grades, and with people's.

    The first line is over all scored replies, within prompts; the others follow each criterion's
    labels, on the same replies for the evaluator and for people.
    """

    def with_words(values: Scores, within: bool) -> Figure:
        return rank_correlation(
            list(values.values()),
            [float(labels.words(r)) for r in values],
            [labels.replies[r].prompt_id for r in values],
            within=within,
            missing="too few unequal replies",
        )

    every = scores_of(found, QUALITY)
    made = [Line("quality, all replies, within a prompt", "coefficient", with_words(every, True))]
    for criterion, scale in labels.scales.items():
        scores, people = scores_of(found, scale.judged_as), labels.consensus(criterion)
        both = [reply for reply in people if reply in scores]
        if not both:
            continue
        within = not scale.comparable
        name = f"{scale.judged_as}, replies with {criterion}{', within a prompt' if within else ''}"
        ours, theirs = ({r: v[r] for r in both} for v in (scores, people))
        made.append(
            Line(name, "coefficient", with_words(ours, within), None, with_words(theirs, within))
        )
    return made
