"""The PPO benchmark's run: contestants in turn, an iteration each, in fresh processes that wait.

Not here: what a contestant does (`rlaif.bench.ppo_ours`, `rlaif.bench.ppo_trl`), what the figures
mean (`rlaif.bench.ppo_report`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rlaif.bench.ppo_process import Process, prepare
from rlaif.bench.ppo_work import PEAKS, Course, PpoJob
from rlaif.bench.rules import turns
from sft.files import UserError


def run(
    job: PpoJob,
    who: Sequence[str],
    trl: Path,
    warmups: int,
    threads: int,
    say: Callable[[str], None],
) -> list[Course]:
    """Measure all contestants.

    Args:
        job: what each does, with the iterations that do not count.
        who: names, see `rlaif.bench.ppo_work.WHO`.
        trl: folder of TRL 1.12.0.
        warmups: iterations that do not count.
        threads: of each process; only one computes at a time.
        say: is told what goes on, a line at a time.

    Raises:
        UserError: peak memory cannot be measured here.
    """
    if not PEAKS.exists():
        raise UserError(f"this system has no {PEAKS}, by which peak memory is measured: use Linux")
    path = Path(job.folder) / "job.json"
    prepare(job, path)
    ids = job.prompt_ids()
    say(
        f"{job.prompts} prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens x {job.k} "
        f"replies of {job.reply} = {job.replies} replies; {job.epochs} epochs x "
        f"{job.mini_batches} = {job.epochs * job.mini_batches} updates"
    )
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in who}
    with ExitStack() as stack:
        processes = {n: stack.enter_context(Process(path, n, trl, threads)) for n in who}
        for process in processes.values():
            process.hear()  # it is loaded
        for number, order in enumerate(turns(list(who), job.iterations)):
            for name in order:
                processes[name].go()
                took = processes[name].hear()["seconds"]
                seconds[name].append(took)
                parts = ", ".join(f"{part} {value:.2f} s" for part, value in took.items())
                say(f"iteration {number}, {name}: {parts}")
        held = {name: process.hear()["held"] for name, process in processes.items()}
    return [Course.made(name, seconds[name][warmups:], held[name]) for name in who]
