"""The settings of pairs: which candidates are paired, what keeps them apart, what is rewritten."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft.sections import Count, Share
from sft.service_settings import Positive, Section

LONGER = 1.5  # times as many words, from which a chosen reply counts as much longer


class PairSection(Section):
    """How assessments become preference pairs.

    No pair by safety is dropped for its length: a safe reply to a crisis is longer by its nature,
    and safety decides whatever the rest. `length_match` only orders, pairs by either rule.
    """

    strategy: Literal["best_worst", "best_rest", "best_rest_safe_unsafe", "all"] = Field(
        default="best_worst", description="which candidates of a prompt are paired"
    )
    margin: Share | Literal["auto"] = Field(
        default=0.05,
        description="least difference of quality, 0 to 1; 0 = any but ties; auto = 1.96 standard "
        "errors of the difference, from the evaluator's own repeats",
    )
    max_pairs_per_prompt: Count = Field(default=0, description="pairs per prompt; 0 = no limit")
    max_length_ratio: float = Field(
        default=0.0, ge=0, description="chosen / rejected reply, in words, at most (>= 1); 0 = off"
    )
    max_longer_share: Share = Field(
        default=1.0,
        description="share of the pairs by quality whose chosen reply is more than 1.5 times as "
        "long in words, at most; those of the smallest margin go first; 1 = off",
    )
    length_match: Share = Field(
        default=0.0,
        description="margins this close count as alike, and of alike pairs the one whose replies "
        "are most alike in length is taken first (max_pairs_per_prompt, best_worst); 0 = off",
    )
    near_duplicate: Share = Field(
        default=0.0,
        description="Jaccard similarity of three-word shingles from which two replies to a prompt "
        "count as one, above 0; 1 = the same words; 0 = off",
    )
    refined: bool = Field(
        default=False,
        description="train on the pairs of the refine stage too (rewritten against first replies); "
        "false = leave them",
    )


class RefineSection(Section):
    """Critique and refine: the policy rewrites a reply by what the evaluator said of it."""

    passes: Annotated[int, Field(ge=1, le=5)] = Field(
        default=2, description="times a reply is rewritten at most, 1 to 5"
    )
    max_words: Positive = Field(
        default=150, description="words of a rewritten reply at most; longer ones are dropped"
    )
    longer_costs: Share = Field(
        default=0.2,
        description="quality (0 to 1) that each doubling of the words has to gain, from 1.25 times "
        "as long on; what wins by safety owes nothing; 0 = off",
    )
    n_prompts: Count = Field(default=0, description="prompts whose reply is rewritten; 0 = all")
