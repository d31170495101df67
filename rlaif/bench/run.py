"""The training benchmark's run: the gate, then every contestant in turn, then the longest prompt.

Contestants of one kind of work are loaded in fresh processes that stay and wait for their turn, so
that one computes at a time, and what disturbs the machine disturbs them alike. Not here: what a
process does (`rlaif.bench.worker`), what the figures mean (`rlaif.bench.figures`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rlaif.bench.figures import Figures, Longest, Missing, Timing
from rlaif.bench.material import long_material, make_material, shortened
from rlaif.bench.processes import GO, Process, context_for
from rlaif.bench.rules import Equality, check_equal, longest_fitting, turns
from rlaif.bench.work import OTHER_LENGTHS, OURS, WORKS, Job, Material, Ready, Size, Work
from rlaif.bench.work import opponents as opponents_of

SEED = 0  # of lengths and words
FINER = 1.06  # from one length that is tried for the longest prompt to the next
SHORTEST, LONGEST = 0.75, 3.0  # of them, times the length that the opponents have
# Of the lengths of replies, and of the longest prompt, that the gate has. A loss depends on sums of
# a reply's log-probabilities, and those of long ones round beyond the gate's tolerance in float32.
GATE_SHARE = 0.25
PEAKS = Path("/proc/self/clear_refs")  # by which the peak memory of a process is measured


@dataclass(frozen=True)
class Options:
    """What is asked of a run.

    Attributes:
        size: of the model and of an update.
        device: "cpu" or "cuda".
        dtype: "auto" = what the device is fast in, or a name.
        load_in_4bit: quantise the base.
        against: opponents, some of B0, B1, B2.
        works: names of works, some of those in the table.
        data: file with the lengths of counsel-chat; None = that row is not measured.
        warmups: updates before those that count.
        repeats: updates that count.
    """

    size: Size
    device: str
    dtype: str
    load_in_4bit: bool
    against: Sequence[str]
    works: Sequence[str]
    data: Path | None
    warmups: int
    repeats: int


def run(options: Options, say: Callable[[str], None]) -> Figures:
    """Measure what is asked.

    Args:
        options: what is asked.
        say: is told what goes on, a line at a time.

    Raises:
        UserError: there is no such device, or the data cannot be used.
        CheckFailed: contestants do not compute the same.
    """
    with TemporaryDirectory() as folder:
        return _Run(options, say, Path(folder)).figures()


class _Run:
    """One run, its models and its processes."""

    def __init__(self, options: Options, say: Callable[[str], None], folder: Path) -> None:
        self.options, self.say, self.folder = options, say, folder
        self.missing: list[Missing] = []
        # Before anything starts: data that cannot be used are told at once.
        self.materials = {work: self._material(work) for work in self._works()}
        self.context = context_for(options.device)
        self.timed, self.gate = folder / "timed", folder / "gate"
        self.ready: Ready = self._ask(
            "prepare", options.size, self.timed, self.gate, options.device, options.dtype
        )
        say(f"{self.ready.device}, {self.ready.threads} threads, {self.ready.dtype}")

    def _works(self) -> list[Work]:
        """What can be measured; what cannot is noted with its reason."""
        options, works = self.options, []
        for work in (*WORKS, *OTHER_LENGTHS):
            reason = None
            if work.name not in options.works:
                reason = "not asked for"
            elif not self._against(work):
                reason = "its opponent was not asked for"
            elif work.probe and options.device == "cpu" and not PEAKS.exists():
                reason = f"this system has no {PEAKS}"
            elif work.ratio is None and options.data is None:
                reason = "needs --data, a file of answers with votes"
            if reason is None:
                works.append(work)
            else:
                self.missing.append(Missing(work, reason))
        return works

    def _material(self, work: Work) -> Material:
        if work.probe:
            return long_material(work, self.options.size, self.options.size.long_prompt, SEED)
        return make_material(work, self.options.size, SEED, self.options.data)

    def figures(self) -> Figures:
        """Compare all, then measure all."""
        gates = {work: self._compare(work) for work in self.materials}
        timings, longest = [], []
        for work in self.materials:
            if work.probe:
                longest += self._longest(work)
            else:
                timings += self._time(work)
        return Figures(self.ready, gates, timings, longest, self.missing)

    def _ask(self, task: str, *args: object) -> Any:
        with Process(self.context, task, *args) as process:
            return process.hear()

    def _against(self, work: Work) -> list[str]:
        known = opponents_of(work, self.options.device)
        return [name for name in known if name in self.options.against]

    def _job(self, work: Work, material: Material, steps: int) -> Job:
        options = self.options
        scratch = Path(mkdtemp(dir=self.folder))
        return Job(
            work, options.size, material, self.timed, scratch, self.ready.dtype, options.device,
            options.load_in_4bit, steps,
        )  # fmt: skip

    def _compare(self, work: Work) -> list[Equality]:
        """The gate: one update's loss and gradient in float32, on a base that is not quantised.

        (TRL rounds adapters of a quantised base to bfloat16.)
        """
        size = replace(self.options.size, prompts=1)
        if work.probe:
            material = long_material(work, size, round(GATE_SHARE * size.long_prompt), SEED)
        else:
            whole = make_material(work, size, SEED, self.options.data)
            material = shortened(whole, GATE_SHARE)
        job = replace(
            self._job(work, material, 1),
            folder=self.gate, dtype="float32", load_in_4bit=False, whole=True,
        )  # fmt: skip
        found: list[Equality] = self._ask("compare", job, [OURS, *self._against(work)])
        check_equal(work.key, OURS, found)
        loss = max((each.loss for each in found), default=0.0)
        cosine = min((each.cosine for each in found), default=1.0)
        self.say(f"{work.key}: equal, losses to {loss:.0e}, gradients to a cosine of {cosine:.7f}")
        return found

    def _time(self, work: Work) -> list[Timing]:
        """Rounds of one update each, in turn, in processes that are loaded before the first."""
        options, names = self.options, [OURS, *self._against(work)]
        material = self.materials[work]
        rounds = options.warmups + options.repeats
        seconds: dict[str, list[float]] = {name: [] for name in names}
        with ExitStack() as stack:
            processes = {
                name: stack.enter_context(
                    Process(self.context, "take turns", self._job(work, material, rounds), name)
                )
                for name in names
            }
            for process in processes.values():
                process.hear()
            for order in turns(names, rounds):
                for name in order:
                    processes[name].say(GO)
                    seconds[name].append(processes[name].hear())
            for process in processes.values():
                process.say(GO)
            peaks = {name: process.hear() for name, process in processes.items()}
        amount, prompts, first = material.amount, material.prompts, options.warmups
        found = [
            Timing(work, name, amount, prompts, seconds[name][first:], peaks[name])
            for name in names
        ]
        for each in found:
            self.say(each.line())
        return found

    def _longest(self, work: Work) -> list[Longest]:
        """The longest prompt of ours in the memory that an opponent needs for the shortest one."""
        size, known = self.options.size, dict[tuple[str, int], int]()

        def peak(who: str, words: int) -> int:
            if (who, words) not in known:
                material = long_material(work, size, words, SEED)
                job = self._job(work, material, 1)
                known[who, words] = self._ask("measure peak", job, who)
                self.say(f"{work.key}: {who}, {words} words, {known[who, words] / 2**20:.0f} MiB")
            return known[who, words]

        lengths = [SHORTEST * size.long_prompt]
        while lengths[-1] < LONGEST * size.long_prompt:
            lengths.append(lengths[-1] * FINER)
        tried = [round(length) for length in lengths]
        found = []
        for name in self._against(work)[::-1]:
            cap = peak(name, size.long_prompt)
            fits, beyond = longest_fitting(tried, lambda words: peak(OURS, words), cap)
            found.append(Longest(work, name, cap, size.long_prompt, fits, beyond))
        return found
