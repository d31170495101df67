"""The transport reads HTTP/1.1 as servers write it, and leaves proxies to the library's own."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence

import httpx2
import pytest

from reward.transport import DirectTransport, needs_proxy

JSON = b'{"a": 1}'
HEAD = b"HTTP/1.1 200 OK\r\n"


def answers(pieces: Sequence[bytes], *, calls: int = 1, close: bool = False) -> list[str]:
    """What a client reads from a server that writes these bytes to each request, one after the
    other, and how many connections it made."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.005)
                if close:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def work() -> list[str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1?a=b"
        found = []
        async with httpx2.AsyncClient(transport=DirectTransport()) as client:
            for _ in range(calls):
                response = await client.post(url, json={"q": "ü"})
                found.append(f"{response.status_code} {response.text}")
                await asyncio.sleep(0.01)
        server.close()
        return [*found, str(connections)]

    return asyncio.run(work())


def test_an_answer_of_known_length_leaves_the_connection_for_the_next():
    whole = HEAD + b"Content-Length: 8\r\n\r\n" + JSON
    assert answers([whole[:20], whole[20:40], whole[40:]], calls=3) == ['200 {"a": 1}'] * 3 + ["1"]


def test_chunks_with_extensions_and_trailers_are_joined():
    body = b'3;x=y\r\n{"a\r\n5\r\n": 1}\r\n0\r\nTrailer: 1\r\n\r\n'
    whole = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body
    assert answers([whole], calls=2) == ['200 {"a": 1}'] * 2 + ["1"]


def test_an_answer_that_ends_with_its_connection_is_whole_and_the_next_one_connects_anew():
    assert answers([HEAD + b"\r\n", JSON], calls=2, close=True) == ['200 {"a": 1}'] * 2 + ["2"]
    closing = HEAD + b"Connection: close\r\nContent-Length: 8\r\n\r\n" + JSON
    assert answers([closing], calls=2) == ['200 {"a": 1}'] * 2 + ["2"]


def test_a_connection_that_the_server_closed_meanwhile_is_not_used():
    whole = HEAD + b"Content-Length: 8\r\n\r\n" + JSON
    assert answers([whole], calls=3, close=True) == ['200 {"a": 1}'] * 3 + ["3"]


def test_notes_before_the_answer_are_passed_over_and_packed_answers_unpacked():
    packed = gzip.compress(JSON)
    head = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD
    head += b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    assert answers([head, packed]) == ['200 {"a": 1}', "1"]


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], httpx2.RemoteProtocolError),
        ([HEAD + b"Content-Length: soon\r\n\r\n"], httpx2.RemoteProtocolError),
        ([HEAD + b"Content-Length: 99999999999\r\n\r\n"], httpx2.RemoteProtocolError),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], httpx2.RemoteProtocolError),
        ([HEAD + b"Content-Length: 9\r\n\r\n" + JSON], httpx2.ReadError),
        ([b""], httpx2.ReadError),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_library(pieces, error):
    with pytest.raises(error):
        answers(pieces, close=True)


def test_proxies_of_the_environment_are_left_to_the_library(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not needs_proxy("https://api.openai.com/v1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,.clinic.example")
    assert needs_proxy("https://api.openai.com/v1")
    assert not needs_proxy("http://api.openai.com/v1")
    assert not needs_proxy("https://judge.clinic.example/v1")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LocalHost"])
def test_what_is_on_this_machine_is_never_reached_through_a_proxy(monkeypatch, host):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
        monkeypatch.setenv(name.lower(), "http://proxy.example:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Such conversations are not redacted: a proxy on another machine would see them whole.
    assert needs_proxy("http://judge.example/v1")
    assert not needs_proxy(f"http://{host}:8000/v1")
    assert not needs_proxy(f"https://{host}:8000/v1")
