"""Critique and refine: what the evaluator said goes back, and the policy writes its reply again.

A rewritten reply becomes the chosen one of a pair only where the evaluator, who does not know which
of the two came first, prefers it, and where it is not merely longer: judges reward length, and a
loop of critique and rewriting is the shortest way to it. Not here: who rewrites (`reward.backend`)
and who judges (`reward.evaluators`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from reward.confidence import RepeatNoise, repeat_noise, require_known
from reward.evaluator import Assessment
from reward.names import FindNamesBy
from reward.pair_choice import rank
from reward.pairing import Judged, Pair, compare, words
from reward.redact import with_names
from reward.refine_report import Pass, Refined
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_rows, short_hash
from sft.pair_settings import PairSection, RefineSection

Rewrite = Callable[[list[Prompt], int], Sequence[Candidate]]
Judge = Callable[[list[Prompt], list[Candidate]], Sequence[Assessment]]
FREE_LENGTH = 1.25  # times the words; up to here a longer reply owes nothing
_REVISE = Path(__file__).parent / "assets" / "revise.txt"
# Text about the rewriting itself, which nobody who needs help should read.
_ABOUT = re.compile(
    r"^\W*(?:sure|okay|certainly|of course|here(?:'s|\u2019s| is))\b[^.\n]{0,80}:"
    r"|\b(?:revised|rewritten) (?:answer|reply|response|version)\b"
    r"|\bmy (?:colleague|draft|previous answer)\b|\bthe critique\b|\[[A-Z]+_\d+\]",
    re.IGNORECASE,
)


class Refiner:
    """Rewrites the best reply to each prompt.

    Args:
        rewrite: the policy's replies to prompts that ask for a rewriting, one each; a prompt that
            is too long has none.
        judge: one assessment per candidate, in their order.
        section: how often, how long.
        pairing: which differences of quality count.
        redact_names: how names were found in what the judge was sent.
    """

    def __init__(
        self,
        rewrite: Rewrite,
        judge: Judge,
        section: RefineSection,
        pairing: PairSection,
        redact_names: FindNamesBy = "rules",
    ) -> None:
        self._rewrite, self._judge = rewrite, judge
        self._section, self._pairing, self._names = section, pairing, redact_names
        self._noise: RepeatNoise

    def refine(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        assessments: Sequence[Assessment],
    ) -> Refined:
        """Rewrite, judge and pair; a prompt goes on while its newest reply is preferred.

        Args:
            prompts: those that the candidates answer.
            candidates: the policy's replies; borrowed ones are left alone.
            assessments: of the candidates, in any order.

        Raises:
            UserError: the margin is "auto" and there are not enough repeats.
        """
        self._noise = repeat_noise(assessments)
        if self._pairing.margin == "auto":
            require_known(self._noise)
        result = Refined()
        first = _starts(prompts, candidates, assessments, result.skipped)
        going = [prompt for prompt in prompts if prompt.id in first]
        if self._section.n_prompts:
            going = going[: self._section.n_prompts]
        current = {prompt.id: first[prompt.id] for prompt in going}
        best: dict[str, Pair] = {}
        for number in range(1, self._section.passes + 1):
            if not going:
                break
            done = Pass(number)
            result.passes.append(done)
            going = self._one_pass(going, first, current, best, done, result)
        result.pairs = [best[prompt.id] for prompt in prompts if prompt.id in best]
        return result

    def _one_pass(
        self,
        prompts: Sequence[Prompt],
        first: dict[str, Judged],
        current: dict[str, Judged],
        best: dict[str, Pair],
        done: Pass,
        result: Refined,
    ) -> list[Prompt]:
        """Rewrite the current replies; returns the prompts whose new one is preferred."""
        made = self._written(prompts, current, done, result)
        asked = [prompt for prompt in prompts if prompt.id in made]
        verdicts = self._blind(asked, [*made.values(), *(current[p.id].candidate for p in asked)])
        going = []
        for prompt in asked:
            reply, old = made[prompt.id], current[prompt.id].candidate
            new = Judged(reply, verdicts[reply.id])
            before = Judged(old, verdicts[old.id])
            result.assessments.append(new.assessment)
            if done.number == 1:
                first[prompt.id] = before
            done.measure(before, new)
            pair = self._preferred(new, before, prompt)
            # A small step each time would otherwise add up to a much longer reply.
            whole = self._preferred(new, first[prompt.id], prompt)
            why = next((each for each in (pair, whole) if isinstance(each, str)), "preferred")
            done.outcomes[why] += 1
            if isinstance(whole, Pair) and why == "preferred":
                current[prompt.id], best[prompt.id] = new, whole
                going.append(prompt)
        return going

    def _written(
        self,
        prompts: Sequence[Prompt],
        current: Mapping[str, Judged],
        done: Pass,
        result: Refined,
    ) -> dict[str, Candidate]:
        """The new replies that are worth judging, by prompt; the others are counted."""
        asked = [_revision(p, current[p.id], self._section.max_words, self._names) for p in prompts]
        made: dict[str, Candidate] = {}
        replies = {reply.prompt_id: reply for reply in self._rewrite(asked, done.number)}
        for prompt in prompts:
            if prompt.id not in replies:
                done.outcomes["no room for it"] += 1
                continue
            reply, old = replies[prompt.id], current[prompt.id].candidate
            about = ["refined", old.id, done.number, reply.id, reply.text]
            reply = replace(reply, id="c-" + short_hash(about), refined_from=old.id)
            result.candidates.append(reply)
            why = self._unfit(reply, old)
            if why is None:
                made[prompt.id] = reply
            else:
                done.outcomes[why] += 1
        return made

    def _unfit(self, reply: Candidate, old: Candidate) -> str | None:
        """Why a reply is not even judged; None = it is."""
        if reply.stop == "length":
            return "cut off"
        if not reply.text.strip():
            return "empty"
        if reply.text.strip() == old.text.strip():
            return "unchanged"
        if words(reply.text) > self._section.max_words:
            return "over max_words"
        return "about the rewriting" if _ABOUT.search(reply.text) else None

    def _blind(
        self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]
    ) -> dict[str, Assessment]:
        """Verdicts by candidate, from a judge who cannot tell which reply came first.

        The judge gets bare texts, under names and in an order that depend on nothing but the text.
        """
        shown: dict[str, Candidate] = {}
        names = {c.id: "r-" + short_hash([c.prompt_id, c.text.strip()]) for c in candidates}
        for candidate in sorted(candidates, key=lambda each: names[each.id]):
            name = names[candidate.id]
            shown[name] = Candidate(
                name, candidate.prompt_id, candidate.text, "reply", 1.0, 1.0, 0, "eos"
            )
        verdicts = self._judge(list(prompts), list(shown.values()))
        found = dict(zip(shown, verdicts, strict=True))
        return {c.id: replace(found[names[c.id]], candidate_id=c.id) for c in candidates}

    def _preferred(self, new: Judged, old: Judged, prompt: Prompt) -> Pair | str:
        """The pair in which the new reply is chosen, or why there is none.

        Beyond `FREE_LENGTH` times the words a better grade is not enough: `longer_costs` for each
        doubling has to be gained. A verdict on safety owes nothing for length, because a safe
        answer to a crisis is longer by its nature.
        """
        if not (new.assessment.scored and old.assessment.scored):
            return f"unscored: {new.assessment.unscored or old.assessment.unscored}"
        pair = compare(new, old, prompt, self._pairing, self._noise)
        if isinstance(pair, str):
            return pair
        if pair.chosen_id != new.candidate.id:
            return "not preferred"
        owed = self._section.longer_costs * math.log2(max(pair.lengthening, FREE_LENGTH))
        if pair.rule == "quality" and pair.lengthening > FREE_LENGTH and pair.margin < owed:
            return "merely longer"
        return pair


def refined_pairs(path: Path) -> list[Pair]:
    """The pairs that the stage left in `pairs.jsonl`; it may have made none."""
    return read_rows(path, Pair) if path.stat().st_size else []


def _starts(
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    assessments: Sequence[Assessment],
    skipped: Counter[str],
) -> dict[str, Judged]:
    """The best own reply to each prompt that has one with a score and a critique."""
    known = {assessment.candidate_id: assessment for assessment in assessments}
    own: dict[str, list[Judged]] = {prompt.id: [] for prompt in prompts}
    for candidate in candidates:
        verdict = known.get(candidate.id)
        fit = not candidate.borrowed and candidate.stop == "eos"
        if fit and verdict is not None and verdict.scored and verdict.critique.strip():
            own[candidate.prompt_id].append(Judged(candidate, verdict))
    skipped["no whole reply with a score and a critique"] += sum(not each for each in own.values())
    return {name: min(each, key=rank) for name, each in own.items() if each}


def _revision(prompt: Prompt, judged: Judged, most_words: int, redact_names: FindNamesBy) -> Prompt:
    """The prompt that asks for a reply once more.

    All of it stands in the last message: what is left out where a conversation is too long is its
    oldest turns, never the person's last words.
    """
    *before, last = prompt.messages
    text = _template().format(
        message=last["content"],
        reply=judged.candidate.text.strip(),
        critique=with_names(
            judged.assessment.critique.strip(), prompt, judged.candidate.text, redact_names
        ),
        words=most_words,
    )
    return replace(prompt, messages=[*before, {"role": "user", "content": text}])


@cache
def _template() -> str:
    lines = _REVISE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")).strip()
