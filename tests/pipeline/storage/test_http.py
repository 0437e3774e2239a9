"""Files behind URLs, from web servers that behave and from those that do not."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from discernible.errors import StorageError
from discernible.pipeline.storage import http as http_reader
from discernible.pipeline.storage.http import UrlFacts, is_url, look_at_url, open_url, read_url, shown_url, url_exists

from ..web_server import DATE, WebServer

DATA = random.Random(0).randbytes(3 << 20)


@pytest.fixture(autouse=True)
def _direct_and_brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(http_reader, "_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(files={"/x.tar": DATA, "/empty.tar": b""}) as running:
        yield running


def everything(url: str) -> bytes:
    with open_url(url) as reader:
        return reader.read()


def test_what_urls_are_and_how_they_are_shown() -> None:
    assert is_url("http://h/x")
    assert is_url("HTTPS://h/x")
    assert not is_url("s3://h/x")
    assert not is_url("/http/x")
    assert shown_url("https://me:pa%20ss@h:81/a/x.tar?X-Amz-Signature=abc#part") == "https://h:81/a/x.tar"
    assert shown_url("https://me:p@ss@h/@a/x.tar?a=b?c") == "https://h/@a/x.tar"
    assert shown_url("https://h?secret") == "https://h"


def test_whole_files_starts_and_facts(server: WebServer) -> None:
    url = f"{server.url}/x.tar?version=3"
    assert everything(url) == read_url(url) == DATA
    assert read_url(url, 1000) == DATA[:1000]
    assert read_url(f"{server.url}/x.tar", 1 << 30) == DATA
    assert look_at_url(url) == UrlFacts(len(DATA), '"one"')
    assert look_at_url(f"{server.url}/empty.tar") == UrlFacts(0, '"one"')
    assert everything(f"{server.url}/empty.tar") == read_url(f"{server.url}/empty.tar", 10) == b""
    assert url_exists(url)
    assert not url_exists(f"{server.url}/y.tar")
    assert read_url(f"{server.url}/y.tar") is None
    assert all(headers["accept-encoding"] == "identity" for headers in server.headers)
    for broken in (look_at_url, open_url):
        with pytest.raises(StorageError, match=rf"^cannot read {server.url}/y\.tar: there is no such file$"):
            broken(f"{server.url}/y.tar?secret=1")


@pytest.mark.parametrize(
    "options", [{"ranges": False}, {"etag": None}, {"etag": None, "dated": True}, {"etag": 'W/"a"'}]
)
def test_plainer_servers(options: dict[str, Any]) -> None:
    with WebServer(files={"/x.tar": DATA}, cut=1_500_000, cuts=1, **options) as server:
        url = f"{server.url}/x.tar"
        etag = options.get("etag", '"one"') or (DATE if "dated" in options else "")
        assert look_at_url(url) == UrlFacts(len(DATA), etag)
        server.cuts = 1
        assert everything(url) == DATA
        assert server.cuts == 0
        assert read_url(url, 10) == DATA[:10]


@pytest.mark.parametrize("reset", [False, True])
def test_bodies_that_break_off_go_on(server: WebServer, reset: bool) -> None:
    server.cut, server.reset = 300_000, reset
    assert everything(f"{server.url}/x.tar") == DATA
    wanted = [headers.get("range") for headers in server.headers]
    assert wanted[0] is None
    assert len(wanted) > 10
    assert all(headers["if-range"] == '"one"' for headers in server.headers[1:])
    assert wanted[1:] == sorted(wanted[1:], key=lambda text: int(str(text)[6:-1]))


def test_a_server_that_never_gets_on_is_given_up(server: WebServer) -> None:
    server.cut = 100
    with pytest.raises(StorageError, match=r"/x\.tar: the connection broke off behind byte 800 of 3145728$"):
        everything(f"{server.url}/x.tar?secret")
    assert len(server.received) == 8


def test_a_file_that_changes_while_it_is_read(server: WebServer) -> None:
    server.cut, server.cuts = 300_000, 1
    with open_url(f"{server.url}/x.tar") as reader:
        assert reader.read(1000) == DATA[:1000]
        server.etag, server.files["/x.tar"] = '"two"', bytes(len(DATA))
        with pytest.raises(StorageError, match="it was changed while it was read"):
            reader.readall()


def test_passing_faults_are_waited_out(server: WebServer) -> None:
    server.statuses = [503, 500, 429, 408]
    assert everything(f"{server.url}/x.tar") == DATA
    server.statuses, server.extra = [503] * 20, {"Retry-After": "0"}
    with pytest.raises(StorageError, match="the server answered 503"):
        everything(f"{server.url}/x.tar")
    assert len(server.statuses) == 12


def test_retry_after_is_kept_within_bounds(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    for asked, least in (("7", 7), ("86400", 60), ("²", 0), ("Wed, 21 Oct 2065 07:28:00 GMT", 0)):
        server.statuses, server.extra = [503], {"Retry-After": asked}
        assert url_exists(f"{server.url}/x.tar")
        assert least <= waits.pop() <= least + 1
        server.extra = {}


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access is denied"), (401, "access is denied"), (410, "no such file"), (400, "the server answered 400")],
)
def test_refusals_in_words(server: WebServer, status: int, message: str) -> None:
    url = f"{server.url}/x.tar?X-Amz-Signature=topsecret"
    server.statuses = [status]
    with pytest.raises(StorageError, match=message) as caught:
        open_url(url)
    assert "topsecret" not in str(caught.value)
    assert len(server.received) == 1
    server.statuses = [status]
    if status == 400:
        with pytest.raises(StorageError, match=message):
            url_exists(url)
    else:
        assert not url_exists(url)


def test_redirects(server: WebServer) -> None:
    with WebServer(files={"/far.tar": DATA}) as other:
        server.redirects = {
            "/a.tar": "/b.tar?x=1",
            "/b.tar": f"{other.url}/far.tar?token=abc",
            "/loop.tar": "/loop.tar",
            "/unsafe.tar": "file:///etc/passwd",
            "/bad.tar": "http://[:::/x",
        }
        url = server.url.replace("http://", "http://me:pa%20ss@")
        assert everything(f"{url}/a.tar") == DATA
        # The password is for the server that it was given for.
        assert [headers.get("authorization") for headers in server.headers] == ["Basic bWU6cGEgc3M="] * 2
        assert [headers.get("authorization") for headers in other.headers] == [None]
        assert other.received == ["/far.tar?token=abc"]
        for name, message in (("loop", "again and again"), ("unsafe", "unsafe place"), ("bad", "no valid URL")):
            with pytest.raises(StorageError, match=message) as caught:
                everything(f"{url}/{name}.tar")
            assert "pa%20ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": {"Content-Encoding": "gzip"}}, "compresses it"),
        ({"extra": {"Content-Length": "9000000"}}, "broke off behind byte 3145728 of 9000000"),
    ],
)
def test_servers_that_send_something_else(options: dict[str, Any], message: str) -> None:
    with (
        WebServer(files={"/x.tar": DATA}, ranges=False, **options) as server,
        pytest.raises(StorageError, match=message),
    ):
        everything(f"{server.url}/x.tar")


def test_a_server_that_does_not_say_how_long_a_file_is() -> None:
    with WebServer(files={"/x.tar": DATA}, ranges=False, lengths=False) as server:
        assert look_at_url(f"{server.url}/x.tar") == UrlFacts(None, '"one"')
        assert everything(f"{server.url}/x.tar") == DATA


def test_servers_that_are_not_there(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gone = server.url.rpartition(":")[0] + ":1"
    with pytest.raises(StorageError, match=r"/x\.tar: the server cannot be reached; check the URL") as caught:
        open_url(f"{gone}/x.tar?topsecret")
    seen = [str(caught.value)]
    cause = caught.value.__cause__
    while cause is not None:
        seen.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    with pytest.raises(StorageError, match="the host is not known"):
        open_url("http://nowhere.invalid/x.tar?topsecret")
    with pytest.raises(StorageError, match="the connection is not safe"):
        open_url(f"{server.url.replace('http:', 'https:')}/x.tar?topsecret")
    for url in ("http://", "http://[::1/x?topsecret", "http://h:99999/?topsecret"):
        with pytest.raises(StorageError, match="no valid URL"):
            open_url(url)
    assert not any("topsecret" in text for text in (*seen, caplog.text))


def test_proxies_of_the_environment(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["http://files.example/x.tar"] = b"by way of the proxy"
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:secret@"))
    assert everything("http://files.example/x.tar") == b"by way of the proxy"
    assert server.headers[-1]["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert everything(f"{server.url}/x.tar") == DATA
    assert "proxy-authorization" not in server.headers[-1]
