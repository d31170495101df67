"""How fast judges are asked: this client with its ledger, beside the SDK's plain asynchronous one.

Both ask a service on this machine, in a process of its own, that answers at once or after a while,
and both get requests that were made before the clock started. Not here: real services.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai

from reward.client import Client, Unread
from reward.ledger import Answer, open_ledger
from reward.request import Form
from reward.rubric import load_rubric
from reward.service import Pace, Request, Service
from reward.verdict import read_verdict
from sft.candidates import Candidate
from sft.data import Message, Prompt
from sft.files import CheckFailed

Verdict = dict[str, Any]
MODEL = "judge"
STEP = 10_000  # rows of a transaction when a ledger is filled
RESUME = """
import sys
from pathlib import Path
from reward.throughput import look
print(*look(Path(sys.argv[1]), int(sys.argv[2])))
"""
RAW = '{"critique": "' + "It was only rehearsed. " * 12 + '"}'


@dataclass(frozen=True)
class Speed:
    """What a client did with some requests.

    Attributes:
        rate: requests per second.
        cpu_ms: CPU milliseconds of this process per request.
    """

    rate: float
    cpu_ms: float


@contextmanager
def local_service(delay: float) -> Iterator[str]:
    """A service in another process, that answers each request after `delay` seconds."""
    command = [sys.executable, "-m", "reward.rehearsal", "--port", "0", "--delay", str(delay)]
    with subprocess.Popen([*command, "--constant"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def requests(n: int) -> list[Request]:
    """Requests about a prompt of 400 and a reply of 150 tokens, all different."""
    said, reply = "It has been a long week and I cannot rest. " * 40, "That sounds hard. " * 40
    form = Form(load_rubric(), "none", MODEL)
    made = []
    for i in range(n):
        messages: list[Message] = [{"role": "user", "content": f"{said}{i}"}]
        prompt = Prompt(f"p{i}", messages, "bench", "t", "none", "train")
        candidate = Candidate(f"c{i}", f"p{i}", f"{reply}{i}", "m", 1.0, 1.0, 0, "eos")
        made.append(form.request(prompt, candidate))
    return made


def ours(url: str, asked: Sequence[Request], in_flight: int) -> Speed:
    """From requests to verdicts, through a ledger on the disk."""
    schema = Form(load_rubric(), "none", MODEL).verdict
    found: list[Verdict] = []

    def read(answer: Answer) -> Verdict | Unread:
        verdict = read_verdict(answer.text, schema)
        return Unread(verdict) if isinstance(verdict, str) else verdict

    def done(key: str, verdict: Verdict | Unread) -> None:
        if not isinstance(verdict, Unread):
            found.append(verdict)

    service = Service(MODEL, url, max_in_flight=in_flight)
    with TemporaryDirectory(dir=".") as folder, open_ledger(Path(folder) / "ledger") as ledger:
        client = Client(service, ledger, read, hint="", pace=Pace())
        speed = _timed(len(asked), lambda: client.ask_all(asked, done, lambda: None))
    _check(len(asked), len(found))
    return speed


def plain(url: str, asked: Sequence[Request], in_flight: int) -> Speed:
    """The same requests through `AsyncOpenAI`, without a ledger, retries or reading."""
    answered: list[str] = []

    async def work() -> None:
        left = iter(asked)
        async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as api:

            async def one_after_another() -> None:
                for request in left:
                    body = request.body(request.max_tokens)
                    made = await api.chat.completions.create(model=MODEL, **body)
                    answered.append(made.choices[0].message.content or "")

            await asyncio.gather(*(one_after_another() for _ in range(in_flight)))

    speed = _timed(len(asked), work)
    _check(len(asked), len(answered))
    return speed


def fill(path: Path, n: int) -> None:
    """Store n answers in a new ledger."""
    with open_ledger(path) as ledger:
        for start in range(0, n, STEP):
            keys = map(_key, range(start, min(n, start + STEP)))
            ledger.append(Answer(key, RAW, "stop", MODEL, 1450, 90, 0.0) for key in keys)


def resume(path: Path, n: int) -> tuple[float, float, int]:
    """Open a ledger in a process of its own and find which of n + 1 requests are left.

    Returns:
        Seconds, the process's peak memory in MB, and how many are left.
    """
    command = [sys.executable, "-c", RESUME, str(path), str(n)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(said[0]), float(said[1]), int(said[2])


def look(path: Path, n: int) -> tuple[float, float, int]:
    """What `resume` does, in this process."""
    began = time.perf_counter()
    with open_ledger(path) as ledger:
        known = ledger.answered()
        left = sum(_key(number) not in known for number in range(n + 1))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), left


def _key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def _check(n: int, found: int) -> None:
    if found != n:
        raise CheckFailed(f"{n} requests had {found} usable answers: the figures would not compare")


def _timed(n: int, work: Callable[[], Coroutine[Any, Any, None]]) -> Speed:
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(work())
    seconds, busy = time.perf_counter() - began, time.process_time() - cpu
    return Speed(n / seconds, 1e3 * busy / n)
