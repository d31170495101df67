"""A service on this machine that plays a judge: to rehearse a scoring run, and to measure a client.

It gives the form that a request asks for, with grades drawn from a hash of the texts, so that the
same request always gets the same answer. It knows nothing of replies: its grades mean nothing.

    python -m reward.rehearsal --port 8000 --delay 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from reward.played import logprobs, material, verdict

__all__ = [
    "Call",
    "Reply",
    "completion",
    "constant",
    "judge",
    "material",
    "running",
    "serve",
    "verdict",
]
CHARACTERS = 4.0  # per token, the usual rule of thumb
BACKLOG = 4096


@dataclass(frozen=True)
class Call:
    """A request that came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @cached_property
    def body(self) -> Any:
        """Its JSON."""
        return json.loads(self.raw)


@dataclass(frozen=True)
class Reply:
    """What goes back.

    Attributes:
        body: bytes as they are, anything else as JSON.
        fault: "reset" drops the connection, "silent" never answers, "drip" sends a byte a second.
        delay: seconds before the first byte.
    """

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Literal["", "reset", "silent", "drip"] = ""
    delay: float = 0.0


Script = Callable[[Call], Reply]


def completion(
    content: str | None, *, finish: str = "stop", model: str = "judge", tokens: int = 100
) -> dict[str, Any]:
    """The body of an answer of `chat/completions`; `tokens` were read."""
    written = round(len(content or "") / CHARACTERS)
    usage = {"prompt_tokens": tokens, "completion_tokens": written}
    return {
        "id": "rehearsal",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }


def judge(call: Call) -> Reply:
    """The answer of a judge that works."""
    content = json.dumps(verdict(call.body), indent=1)
    read = round(len(json.dumps(call.body)) / CHARACTERS)
    made = completion(content, model=call.body["model"], tokens=read)
    if call.body.get("logprobs"):
        made["choices"][0]["logprobs"] = logprobs(content)
    return Reply(body=made)


def constant() -> Script:
    """A judge that gives everybody the answer of the first call: the least work for a service."""
    known: list[Reply] = []

    def answer(call: Call) -> Reply:
        if not known:
            known.append(judge(call))
            known[0] = replace(known[0], body=json.dumps(known[0].body).encode())
        return known[0]

    return answer


async def serve(
    script: Script,
    port: int,
    started: Callable[[int], None],
    *,
    delay: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Answer by the script until cancelled; `started` learns the port, `port` 0 = any free one."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while True:
                reply = script(await _read(reader))
                if reply.delay or delay:
                    await asyncio.sleep(reply.delay or delay)
                if not await _FAULTS[reply.fault](reply, writer):
                    break
        writer.transport.abort()

    server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=BACKLOG, ssl=tls)
    started(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def running(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve in a thread of this process; gives the base URL."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    ports: list[int] = []

    def started(port: int) -> None:
        ports.append(port)
        ready.set()

    def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    task = loop.create_task(serve(script, 0, started, tls=tls))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{ports[0]}/v1"
    finally:
        loop.call_soon_threadsafe(_cancel_all, loop)
        thread.join()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _read(reader: asyncio.StreamReader) -> Call:
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = [line.partition(":") for line in lines]
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(method, path, headers, raw)


def _bytes(reply: Reply) -> bytes:
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in (headers | dict(reply.headers)).items()]
    return "\r\n".join([f"HTTP/1.1 {reply.status} x", *lines, "", ""]).encode() + body


async def _whole(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    writer.write(_bytes(reply))
    await writer.drain()
    return True


async def _reset(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    return False


async def _silent(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    await asyncio.Event().wait()
    return False


async def _drip(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    for byte in _bytes(reply):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)
    return True


_FAULTS: dict[str, Callable[[Reply, asyncio.StreamWriter], Awaitable[bool]]] = {
    "": _whole,
    "reset": _reset,
    "silent": _silent,
    "drip": _drip,
}


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="0 = any free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--constant", action="store_true", help="one answer for all, for speed")
    args = parser.parse_args()

    def started(port: int) -> None:
        print(f"http://127.0.0.1:{port}/v1", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        script = constant() if args.constant else judge
        asyncio.run(serve(script, args.port, started, delay=args.delay))


if __name__ == "__main__":
    main()
