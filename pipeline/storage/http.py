"""Reading a file behind an http(s) URL: passing faults are waited out, and a body cut short goes on where it broke off.

A URL may hold secrets, as userinfo or as the signature in its query. No message here shows either, and no exception of
urllib3 that names the URL is passed on.
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin

from ...errors import StorageError
from .base import check_size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from urllib3 import BaseHTTPResponse, PoolManager
    from urllib3.util import Url

__all__ = [
    "HttpReader",
    "UrlFacts",
    "is_url",
    "look_at_url",
    "open_url",
    "read_url",
    "read_whole_url",
    "shown_url",
    "url_exists",
]

_TRIES = 8
_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 10.0
# A server may ask for longer, but nobody waits for it unseen.
_MAX_RETRY_AFTER_SECONDS = 60
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_CONNECTIONS = 32
_REDIRECTS = 5
# What is read at once; a connection that brings as much lets the faults before it be forgotten.
_CHUNK = 64 << 10

# The last is the answer to a range of an empty file.
_FINE = (200, 206, 416)
_PASSING = (408, 429, 500, 502, 503, 504)
# Stores that nobody may list answer 401 or 403 for what is not there.
_ABSENT = (401, 403, 404, 410)
_DENIED = "access is denied; check the URL: what signs it may have expired"
_REASONS = {
    401: _DENIED,
    403: _DENIED,
    404: "there is no such file",
    410: "there is no such file any more",
    412: "it was changed while it was read",
    429: "the server asked to slow down, again and again",
}


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location is an http(s) URL."""
    return os.fspath(location).lower().startswith(("http://", "https://"))


def shown_url(url: str) -> str:
    """A URL as messages may show it: without userinfo, query and fragment."""
    return re.sub(r"^(\w+://)[^/]*@", r"\1", re.split(r"[?#]", url, maxsplit=1)[0])


@dataclass(frozen=True, slots=True)
class UrlFacts:
    """What a server tells of a file: its size in bytes, None where it does not say; what changes with the file."""

    size: int | None
    etag: str


def look_at_url(url: str) -> UrlFacts:
    """Size and version of a file. Raises StorageError, also when there is none."""
    answer = _look(url)
    if answer.status not in _FINE:
        raise _refusal(url, answer)
    return _facts(answer)


def url_exists(url: str) -> bool:
    """Whether there is such a file, and it may be read. Raises StorageError."""
    answer = _look(url)
    if answer.status not in (*_FINE, *_ABSENT):
        raise _refusal(url, answer)
    return answer.status in _FINE


def _look(url: str) -> BaseHTTPResponse:
    # Not HEAD, which URLs that are signed for GET refuse.
    answer = _get(url, _range(0, 1))
    _leave(answer)
    return answer


def read_url(url: str, size: int | None = None, limit: int | None = None) -> bytes | None:
    """A file, or its first ``size`` bytes; None when there is none, or none that may be read.

    Raises StorageError, also when it has more than ``limit`` bytes.
    """
    answer = _get(url, _range(0, size))
    if answer.status in _ABSENT:
        _leave(answer)
        return None
    return _read_within(url, HttpReader(url, answer, size), size, limit)


def read_whole_url(url: str, limit: int | None = None) -> bytes:
    """A file. Raises StorageError when there is none, or it has more than ``limit`` bytes."""
    return _read_within(url, open_url(url), None, limit)


def _read_within(url: str, reader: HttpReader, size: int | None, limit: int | None) -> bytes:
    with io.BufferedReader(reader, _CHUNK) as stream:
        if limit is None:
            return stream.read(size)
        check_size(shown_url(url), reader.size or 0, limit)
        pieces, total = [], 0
        # A server need not say how much it sends.
        while piece := stream.read(_CHUNK):
            pieces.append(piece)
            total += len(piece)
            check_size(shown_url(url), total, limit)
        return b"".join(pieces)


def open_url(url: str) -> HttpReader:
    """A file to be read from its start. Raises StorageError when there is none."""
    return HttpReader(url, _get(url, {}))


class HttpReader(io.RawIOBase):
    """A file behind a URL, read from its start; ``answer`` is that to the first request. Raises StorageError.

    All bytes are of one version of the file, as far as the server tells versions apart by ETag or Last-Modified.
    ``size`` is that of the file in bytes, or None; with ``limit``, no more than so many bytes are asked for.
    """

    def __init__(self, url: str, answer: BaseHTTPResponse, limit: int | None = None) -> None:
        super().__init__()
        if answer.status not in _FINE:
            _leave(answer)
            raise _refusal(url, answer)
        _check_start(url, answer, 0)
        facts = _facts(answer)
        self.size, self.etag = facts.size, facts.etag
        self._url, self._limit = url, limit
        self._end = self.size if limit is None or self.size is None else min(limit, self.size)
        self._at = self._failures = self._failed_at = 0
        self._body: BaseHTTPResponse | None = answer

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of the buffer; 0 at the end."""
        from urllib3.exceptions import HTTPError

        view = memoryview(buffer).cast("B")
        while wanted := len(view) if self._end is None else min(len(view), self._end - self._at):
            try:
                data = self._resumed().read(min(wanted, _CHUNK), decode_content=False)
            except (HTTPError, OSError) as exc:
                self._note_failure(exc)
                continue
            if not data and self._end is not None:
                self._note_failure(None)
                continue
            view[: len(data)] = data
            self._at += len(data)
            return len(data)
        return 0

    def close(self) -> None:
        """Let go of the connection."""
        if self._body is not None:
            _leave(self._body)
            self._body = None
        super().close()

    def _note_failure(self, error: Exception | None) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
        if self._at - self._failed_at >= _CHUNK:
            self._failures = 0
        self._failures, self._failed_at = self._failures + 1, self._at
        if self._failures == _TRIES or self._end is None:
            what = "the connection broke off" if error is None else _reason(error)
            of = "" if self._end is None else f" of {self._end}"
            raise StorageError(f"cannot read {shown_url(self._url)}: {what} behind byte {self._at}{of}") from error
        _wait(self._failures)

    def _resumed(self) -> BaseHTTPResponse:
        if self._body is not None:
            return self._body
        headers = _range(self._at, self._limit)
        if self.etag and not self.etag.startswith("W/"):
            headers["If-Range"] = self.etag
        answer = _get(self._url, headers)
        whole = answer.status == 200
        if not whole and answer.status != 206:
            _leave(answer)
            raise _refusal(self._url, answer)
        if _facts(answer) != UrlFacts(self.size, self.etag):
            answer.close()
            raise StorageError(f"cannot read {shown_url(self._url)}: {_REASONS[412]}")
        _check_start(self._url, answer, self._at)
        self._body = answer
        left = self._at if whole else 0
        while left and (data := answer.read(min(left, _CHUNK), decode_content=False)):
            left -= len(data)
        return answer


def _range(start: int, limit: int | None) -> dict[str, str]:
    """The header that asks for the bytes from ``start`` on, none behind ``limit``; none when that is all of them."""
    return {"Range": f"bytes={start}-{'' if limit is None else limit - 1}"} if start or limit is not None else {}


def _check_start(url: str, answer: BaseHTTPResponse, start: int) -> None:
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        answer.close()
        raise StorageError(f"cannot read {shown_url(url)}: the server sent another range than it was asked for")


def _get(url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
    """The answer to a GET, its body still unread, whatever its status; what passes is waited out."""
    from urllib3.exceptions import HTTPError, SSLError

    doing = f"cannot read {shown_url(url)}"
    for attempt in range(1, _TRIES + 1):
        pause = 0.0
        try:
            answer = _follow(url, headers)
        except ValueError:
            raise StorageError(f"{doing}: this is no valid URL") from None
        except (HTTPError, OSError) as exc:
            if attempt == _TRIES or isinstance(exc, SSLError):
                raise StorageError(f"{doing}: {_reason(exc)}") from exc
        else:
            if answer.status not in _PASSING:
                return answer
            _leave(answer)
            if attempt == _TRIES:
                raise _refusal(url, answer)
            asked = answer.headers.get("Retry-After", "")
            pause = min(float(asked), _MAX_RETRY_AFTER_SECONDS) if asked.isdecimal() else 0.0
        _wait(attempt, pause)
    raise AssertionError("unreachable: the last try returns or raises")


def _follow(url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
    from urllib3 import Timeout, make_headers
    from urllib3.util import parse_url

    first = here = parse_url(url)
    own = make_headers(basic_auth=unquote(first.auth)) if first.auth else {}
    for _ in range(_REDIRECTS + 1):
        same = (here.scheme, here.netloc) == (first.scheme, first.netloc)
        # Redirects and retries are ours: urllib3 logs the whole URLs of its own.
        answer = _manager(here).request(
            "GET",
            here._replace(auth=None, fragment=None).url,
            headers={**headers, **(own if same else {}), "Accept-Encoding": "identity", "User-Agent": "discernible"},
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        )
        target = answer.get_redirect_location()
        if not target:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                answer.close()
                raise StorageError(
                    f"cannot read {shown_url(url)}: the server compresses it, though it was asked not to"
                )
            return answer
        _leave(answer)
        there = parse_url(urljoin(here.url, target))
        if there.scheme not in ("http", "https") or (here.scheme, there.scheme) == ("https", "http"):
            raise StorageError(f"cannot read {shown_url(url)}: it is redirected to an unsafe place")
        here = there
    raise StorageError(f"cannot read {shown_url(url)}: it is redirected again and again")


_managers: dict[tuple[int, str], PoolManager] = {}


def _manager(url: Url) -> PoolManager:
    # A forked process must not use the connections of its parent. No lock: at worst, one more manager is made.
    from urllib.request import getproxies, proxy_bypass

    from urllib3 import PoolManager, ProxyManager, make_headers
    from urllib3.util import parse_url

    proxy = "" if proxy_bypass(url.host or "") else getproxies().get(url.scheme or "", "")
    key = (os.getpid(), proxy)
    if key not in _managers and proxy:
        parsed = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        own = make_headers(proxy_basic_auth=unquote(parsed.auth)) if parsed.auth else None
        _managers[key] = ProxyManager(parsed._replace(auth=None).url, maxsize=_CONNECTIONS, proxy_headers=own)
    elif key not in _managers:
        _managers[key] = PoolManager(maxsize=_CONNECTIONS)
    return _managers[key]


def _facts(answer: BaseHTTPResponse) -> UrlFacts:
    # "bytes 0-0/67108864", of an empty file "bytes */0".
    length = answer.headers.get("Content-Length", "")
    if answer.status != 200:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    etag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return UrlFacts(int(length) if length.isdecimal() and len(length) < 20 else None, etag)


def _leave(answer: BaseHTTPResponse) -> None:
    """Let go of an answer; its connection is used again if next to nothing is left to read."""
    left = answer.length_remaining
    if left is not None and left <= _CHUNK:
        answer.drain_conn()
    else:
        answer.close()


def _refusal(url: str, answer: BaseHTTPResponse) -> StorageError:
    reason = _REASONS.get(answer.status, f"the server answered {answer.status}")
    return StorageError(f"cannot read {shown_url(url)}: {reason}")


def _reason(error: Exception) -> str:
    from urllib3 import exceptions

    if isinstance(error, exceptions.NameResolutionError):
        return "the host is not known; check the URL and the network"
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.ProxyError):
        return "the server cannot be reached; check the URL and the network"
    if isinstance(error, exceptions.ReadTimeoutError):
        return f"the server was silent for {_READ_SECONDS} seconds"
    if isinstance(error, exceptions.SSLError):
        return f"the connection is not safe: {error}"
    return "the connection broke off"


def _wait(attempt: int, least: float = 0.0) -> None:
    limit = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** (attempt - 1))
    time.sleep(max(least, random.uniform(0, limit)))
