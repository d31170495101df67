"""How fast an evaluator's service is asked, ledger included, beside plain `AsyncOpenAI`.

A local service answers at once with 32 calls in flight, and after half a second with 1,000. The two
clients take turns; the ratio is of their medians. Then a ledger of a million rows is resumed.

    OMP_NUM_THREADS=1 python scripts/bench_feedback.py
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from reward.throughput import Speed, fill, local_service, ours, plain, requests, resume
from sft.files import write_json
from sft.runs import run_script

AGAINST = "AsyncOpenAI"


def compare(delay: float, n: int, in_flight: int, repeats: int) -> dict[str, object]:
    """Both clients in turn against one service; medians and their ratio."""
    found: dict[str, list[Speed]] = {"ours": [], AGAINST: []}
    asked = requests(n)
    with local_service(delay) as url:
        for _ in range(repeats):
            found[AGAINST].append(plain(url, asked, in_flight))
            found["ours"].append(ours(url, asked, in_flight))
    middle = {
        name: Speed(median(s.rate for s in speeds), median(s.cpu_ms for s in speeds))
        for name, speeds in found.items()
    }
    for name, speed in middle.items():
        print(f"  {name:12} {speed.rate:7.0f} requests/s, {speed.cpu_ms:.2f} ms CPU per request")
    return {
        "against": AGAINST,
        "ratio": round(middle["ours"].rate / middle[AGAINST].rate, 2),
        "requests": n,
        "repeats": repeats,
        **{name: asdict(speed) for name, speed in middle.items()},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each client")
    parser.add_argument("--requests", type=int, default=5000, help="requests of a turn")
    parser.add_argument("--rows", type=int, default=1_000_000, help="stored rows to resume")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/feedback.json"))
    args = parser.parse_args()

    table = []
    for work, delay, in_flight in (("zero-ms-32", 0.0, 32), ("half-second-1000", 0.5, 1000)):
        print(f"{work}: {args.requests} requests, {args.repeats} turns each", flush=True)
        row = {"work": work, **compare(delay, args.requests, in_flight, args.repeats)}
        print(f"  ratio {row['ratio']}", flush=True)
        table.append(row)
    with TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "ledger.sqlite"
        fill(path, args.rows)
        size = path.stat().st_size / 1e6
        seconds, memory, left = resume(path, args.rows)
    print(
        f"resume: {args.rows:,} rows ({size:.0f} MB) in {seconds:.1f} s with {memory:.0f} MB; "
        f"{left} left to ask"
    )
    scan = {"rows": args.rows, "seconds": round(seconds, 2), "memory_mb": round(memory)}
    write_json(args.out, {"rows": table, "resume": scan})
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
