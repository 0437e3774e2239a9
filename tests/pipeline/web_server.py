"""A small web server on the loopback interface that can behave as badly as web servers do."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

_LONG = 5000
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@dataclass(kw_only=True)
class WebServer:
    """Context manager that serves ``files`` (path → bytes).

    ``statuses`` are the answers to the first requests; ``cut`` breaks every body off behind so many bytes, as often as
    ``cuts`` says; ``spoilt`` long ones come with a wrong byte; ``redirects`` maps paths to URLs. ``received`` tells
    what was asked, ``headers`` with what.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str | None = '"one"'
    dated: bool = False
    lengths: bool = True
    cut: int | None = None
    cuts: int = 1 << 30
    spoilt: int = 0
    reset: bool = False
    statuses: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gate: threading.Event | None = None
    """Where there is one, long bodies stop in their middle until it is set."""

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                # Clients that hang up are what these tests are about.
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        path = unquote(handler.path.partition("?")[0])
        self.received.append(handler.path)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        if self.statuses:
            self._send(handler, self.statuses.pop(0), b"an error page", self.extra)
        elif path in self.redirects:
            self._send(handler, 302, b"", {"Location": self.redirects[path]})
        elif path not in self.files:
            self._send(handler, 404, b"no such page", {})
        else:
            self._send_file(handler, self.files[path])

    def _send_file(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        headers = dict(self.extra)
        if self.etag is not None:
            headers["ETag"] = self.etag
        if self.dated:
            headers["Last-Modified"] = DATE
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")) if self.ranges else None
        if wanted and handler.headers.get("If-Range", self.etag) not in (self.etag, DATE):
            wanted = None
        if wanted is None:
            self._send(handler, 200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first >= len(data):
            self._send(handler, 416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(handler, 206, data[first : last + 1], headers)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if self.lengths and "Content-Length" not in headers:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if self.spoilt > 0 and len(body) > _LONG:
            self.spoilt -= 1
            body = body[:4500] + bytes([body[4500] ^ 1]) + body[4501:]
        if self.cut is not None and self.cuts > 0 and len(body) > self.cut:
            self.cuts -= 1
            handler.wfile.write(body[: self.cut])
            handler.wfile.flush()
            handler.close_connection = True
            if self.reset:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if self.gate is not None and len(body) > _LONG:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            self.gate.wait(20)
            body = body[len(body) // 2 :]
        handler.wfile.write(body)
