"""A proxy before an S3 server that lets a share of the requests fail, in the ways that requests to S3 do fail.

It speaks HTTP/1.1, one request a connection, keeps ``Host`` and everything that is signed, and runs in a thread. Faults
are drawn from a seed. :data:`FAULTS` says what there is; ``faults`` and ``wanted`` choose.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

FAULTS = ("slow_down", "reset", "unacknowledged", "cut", "delay")
"""503 SlowDown without effect; reset without effect; done, but the connection is reset before the answer; the answer
breaks off in its body; the answer is late."""

_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)
_SLOW_DOWN_BODY = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyProxy:
    """Context manager; ``endpoint`` is what clients use instead of ``upstream``.

    ``rate`` of all requests that ``wanted(method, path)`` holds for get one of ``faults``; ``counts`` tells how many.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rate: float,
        seed: int = 0,
        faults: Sequence[str] = FAULTS,
        wanted: Callable[[str, str], bool] = lambda method, path: True,
        delay: float = 0.3,
    ) -> None:
        self._host, _, port = upstream.removeprefix("http://").partition(":")
        self._port = int(port)
        self._rate, self._faults, self._wanted, self._delay = rate, faults, wanted, delay
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            self.counts["broken"] += 1
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[:-2]
        method, path = lines[0].split(" ")[:2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        fault = None
        if self._wanted(method, path) and self._random.random() < self._rate:
            fault = self._random.choice(self._faults)
        self.counts[fault or "fine"] += 1
        if fault == "slow_down":
            writer.write(_SLOW_DOWN % (len(_SLOW_DOWN_BODY), _SLOW_DOWN_BODY))
            await writer.drain()
            return
        if fault == "reset":
            _reset(writer)
            return
        kept = [line for line in lines if line.partition(":")[0].lower() not in ("expect", "connection")]
        answer = await self._forward("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
        if fault == "unacknowledged":
            _reset(writer)
            return
        if fault == "delay":
            await asyncio.sleep(self._delay)
        if fault == "cut":
            start = answer.index(b"\r\n\r\n") + 4
            answer = answer[: start + (len(answer) - start) // 2]
            if len(answer) == start:
                _reset(writer)
                return
        writer.write(answer)
        await writer.drain()

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
