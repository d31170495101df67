"""HTTP/1.1 for many calls at once, as a transport of the SDK's own HTTP library.

The library's default pool looks through all its connections for each request, which with 1,000 in
flight costs 2 ms of CPU per call (scripts/bench_feedback.py). This one pops an idle connection from
a stack and reads whole answers. Not here: proxies (then the default transport is used), HTTP/2,
streamed answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from sft.service_settings import LOCAL_HOSTS, is_local

LARGEST = 64 << 20  # bytes of an answer; more is no chat completion
CONNECT_S = 20.0
Headers = list[tuple[bytes, bytes]]
Host = tuple[str, int, bool]
# The same for the library's own clients, which take these addresses through the proxies, too.
WITHOUT_PROXY: dict[str, None] = dict.fromkeys(
    f"all://[{host}]" if ":" in host else f"all://{host}" for host in LOCAL_HOSTS
)


def needs_proxy(url: str) -> bool:
    """Whether the environment (HTTPS_PROXY, NO_PROXY, ...) sends calls to `url` through a proxy.

    Never those to this machine: what they carry is not redacted, and nobody allowed a proxy to see
    it.
    """
    if is_local(url):
        return False
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not bool(
        urllib.request.proxy_bypass(parts.hostname or "")
    )


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def usable(self) -> bool:
        """Whether the server has left it open, as far as one can see."""
        return not self.reader.at_eof() and not self.writer.is_closing()


class DirectTransport(httpx2.AsyncBaseTransport):
    """One connection per call in flight, kept for the next call."""

    def __init__(self) -> None:
        """No connection is made before the first call."""
        self._idle: dict[Host, list[_Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the whole answer.

        Raises:
            httpx2.ConnectError: no connection (name, route, certificate).
            httpx2.ReadError: the connection was lost before the answer was whole.
            httpx2.RemoteProtocolError: what came is no HTTP/1.1.
        """
        url = request.url
        secure = url.scheme == "https"
        host = (url.host, url.port or (443 if secure else 80), secure)
        connection = self._pop(host) or await self._connect(host)
        kept = False
        try:
            connection.writer.write(_head(request) + await request.aread())
            status, headers, body, reusable = await _answer(connection.reader)
            kept = reusable and connection.usable()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise httpx2.ReadError(f"connection lost: {error or type(error).__name__}") from error
        except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise httpx2.RemoteProtocolError(f"no HTTP/1.1 answer: {error}") from error
        finally:
            # After a cancelled call, too: half an answer would be taken for the next one's.
            if kept:
                self._idle.setdefault(host, []).append(connection)
            else:
                connection.writer.transport.abort()
        return httpx2.Response(status, headers=headers, content=body)

    async def aclose(self) -> None:
        """Close the idle connections."""
        idle = [each for group in self._idle.values() for each in group]
        self._idle.clear()
        for connection in idle:
            connection.writer.close()
        for connection in idle:
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()

    def _pop(self, host: Host) -> _Connection | None:
        group = self._idle.get(host, [])
        while group:
            connection = group.pop()
            if connection.usable():
                return connection
            connection.writer.close()
        return None

    async def _connect(self, host: Host) -> _Connection:
        name, port, secure = host
        if secure and self._tls is None:
            self._tls = httpx2.create_ssl_context()
        try:
            opening = asyncio.open_connection(
                name, port, ssl=self._tls if secure else None, limit=1 << 20
            )
            return _Connection(*await asyncio.wait_for(opening, CONNECT_S))
        except asyncio.TimeoutError as error:
            raise httpx2.ConnectTimeout(f"no connection to {name}:{port}") from error
        except OSError as error:  # ssl.SSLError and socket.gaierror are among them
            raise httpx2.ConnectError(f"{name}:{port}: {error}") from error


def _head(request: httpx2.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [name + b": " + value for name, value in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Headers, bytes, bool]:
    """Status, headers and body of one answer, and whether the connection may be used again."""
    status = 100
    while 100 <= status < 200:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        version, code = first.split(b" ", 2)[:2]
        if not version.startswith(b"HTTP/1."):
            raise ValueError("another protocol")
        status = int(code)
    headers: Headers = []
    known: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        known[name.strip().lower()] = value.strip()
        headers.append((name.strip(), value.strip()))
    ends = b"close" in known.get(b"connection", b"").lower() or version == b"HTTP/1.0"
    if b"chunked" in known.get(b"transfer-encoding", b"").lower():
        return status, headers, await _chunks(reader), not ends
    if b"content-length" in known:
        length = int(known[b"content-length"])
        if not 0 <= length <= LARGEST:
            raise ValueError(f"an answer of {length} bytes")
        return status, headers, await reader.readexactly(length), not ends
    if status in (204, 304):
        return status, headers, b"", not ends
    body = await reader.read(LARGEST)
    while not reader.at_eof() and len(body) < LARGEST:
        body += await reader.read(LARGEST)
    return status, headers, body, False


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        total += size
        if size < 0 or total > LARGEST:
            raise ValueError(f"an answer of {total} bytes")
        parts.append((await reader.readexactly(size + 2))[:-2])
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)
