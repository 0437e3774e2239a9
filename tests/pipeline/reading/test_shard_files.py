"""Shards as local files: fetched once a machine, whole or not at all, and kept while they are read."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from discernible import CompressedLoader
from discernible.errors import ConfigError, PipelineError, ShardError, StorageError
from discernible.pipeline.reading import files as shard_files
from discernible.pipeline.reading.files import CacheOptions, ShardFiles
from discernible.pipeline.shards.receipts import list_receipts
from discernible.pipeline.storage import http as http_reader
from discernible.pipeline.storage.cache import cache_name
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.storage.s3_client import S3Options

from ..web_server import WebServer

Start = Callable[..., "subprocess.Popen[str]"]
DATA = random.Random(0).randbytes(1 << 20)

READ = (
    "import hashlib, sys\n"
    "from discernible.pipeline.reading.files import CacheOptions, ShardFiles\n"
    "files = ShardFiles(cache=CacheOptions(folder=sys.argv[1]))\n"
    "for place in sys.argv[2:]:\n"
    "    with files.open(place) as file:\n"
    "        print(hashlib.sha256(file.read()).hexdigest(), flush=True)\n"
)


@pytest.fixture(autouse=True)
def _direct_and_brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http_reader, "_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(shard_files, "_PAUSE_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(files={f"/{name}.tar": DATA for name in "abc"}) as running:
        yield running


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a script in a process of its own, which ends with the test at the latest."""
    running: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=10)


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return out.strip()


def soon(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def copies(folder: Path) -> list[str]:
    """The ends of the names of all but the folder's lock, sorted."""
    return sorted(path.name[53:] for path in folder.iterdir() if path.name != "discernible.lock")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bodies(server: WebServer, name: str) -> int:
    """How often a whole file was asked for."""
    asked = zip(server.received, server.headers, strict=True)
    return sum(path.startswith(name) and "range" not in headers for path, headers in asked)


def test_local_files_are_opened_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(DATA)
    files = ShardFiles(cache=CacheOptions(folder=tmp_path / "cache"))
    for place in (str(tmp_path / "x.tar"), f"file://{tmp_path}/x.tar"):
        with files.open(place) as file:
            assert os.pread(file.fileno(), 100, 1000) == DATA[1000:1100]
            assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
            assert file.read() == DATA[-5:]
    assert files.read_receipt(str(tmp_path / "x.tar")) is None
    assert not (tmp_path / "cache").exists()
    with pytest.raises(StorageError, match="No such file") as caught:
        files.open(str(tmp_path / "y.tar"))
    assert caught.value.shard == str(tmp_path / "y.tar")


def test_a_shard_of_s3_is_fetched_once(converted: Path, bucket: str, proxy: Any, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/out")
    for path in converted.iterdir():
        storage.put(path.name, path.read_bytes())
    storage.put("bare.tar", DATA)
    asked: list[str] = []

    def note(method: str, path: str) -> bool:
        asked.append(f"{method} {path.rpartition('/')[2]}")
        return False

    with proxy(rate=0.0, wanted=note) as between:
        options = S3Options(endpoint=between.endpoint, range_bytes=100_000)
        for first in (True, False):
            files = ShardFiles(s3=options, cache=CacheOptions(folder=tmp_path / "cache"))
            for _ in range(2):
                for name in ("00000.tar", "bare.tar"):
                    data = (converted / name).read_bytes() if name != "bare.tar" else DATA
                    with files.open(f"{storage.location}/{name}") as file:
                        assert os.pread(file.fileno(), len(data) + 1, 0) == data
            assert asked.count("GET bare.tar") == (11 if first else 0)
            assert ("GET 00000.tar" in asked) == first
            # Where a receipt tells the version, nobody asks for the tar itself.
            assert asked.count("HEAD 00000.tar") == (1 if first else 0)
            assert asked.count("GET 00000.json") == 1
            asked.clear()
        assert files.read_receipt(f"{storage.location}/00000.tar") == (converted / "00000.json").read_bytes()
        assert files.read_receipt(f"{storage.location}/bare.tar") is None
    assert copies(tmp_path / "cache") == ["00000.tar", "bare.tar"]


def test_s3_that_fails_now_and_then(bucket: str, proxy: Any, tmp_path: Path) -> None:
    open_storage(bucket).put("x.tar", DATA)
    with proxy(rate=0.4, seed=2) as faulty:
        options = S3Options(endpoint=faulty.endpoint, range_bytes=100_000)
        with ShardFiles(s3=options, cache=CacheOptions(folder=tmp_path)).open(f"{bucket}/x.tar") as file:
            assert file.read() == DATA
        assert sum(faulty.counts[fault] for fault in ("cut", "reset", "unacknowledged", "slow_down")) > 3
    with pytest.raises(StorageError, match=r"cannot read s3://.*/y\.tar: there is no such object"):
        ShardFiles(cache=CacheOptions(folder=tmp_path)).open(f"{bucket}/y.tar")


def test_stores_are_told_apart(bucket: str, proxy: Any, tmp_path: Path) -> None:
    open_storage(bucket).put("x.tar", DATA)
    with proxy(rate=0.0) as between:
        for s3 in (None, S3Options(endpoint=between.endpoint)):
            ShardFiles(s3=s3, cache=CacheOptions(folder=tmp_path)).open(f"{bucket}/x.tar").close()
    assert copies(tmp_path) == ["x.tar", "x.tar"]


@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_shard_that_is_replaced(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: WebServer = request.getfixturevalue("server")
    place = f"{request.getfixturevalue('bucket')}/a.tar" if store == "s3" else f"{server.url}/a.tar"

    def put(data: bytes) -> None:
        if store == "s3":
            open_storage(place.rpartition("/")[0]).put("a.tar", data)
        server.files["/a.tar"], server.etag = data, f'"{sha256(data)}"'

    options = CacheOptions(folder=tmp_path, limit_bytes=1)
    put(DATA)
    files = ShardFiles(cache=options)
    with files.open(place) as file:
        assert file.read() == DATA
        put(DATA[::-1])
        with files.open(place) as again:
            # Offsets that were found in the old one stay true.
            assert again.read() == DATA
        with ShardFiles(cache=options).open(place) as new:
            assert new.read() == DATA[::-1]
    ShardFiles(cache=options).open(f"{server.url}/b.tar").close()
    with pytest.raises(ShardError, match="was replaced while it was in use") as caught:
        files.open(place)
    assert caught.value.shard == place


def test_many_processes_fetch_a_shard_once(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.gate = threading.Event()
    readers = [started(READ, tmp_path, f"{server.url}/a.tar") for _ in range(4)]
    # All have asked which version there is, and one of them is in the middle of it.
    soon(lambda: sum(headers.get("range") == "bytes=0-0" for headers in server.headers) == 4)
    soon(lambda: bodies(server, "/a.tar"))
    time.sleep(0.2)
    server.gate.set()
    assert [finished(reader) for reader in readers] == [sha256(DATA)] * 4
    assert bodies(server, "/a.tar") == 1
    assert copies(tmp_path) == ["a.tar"]


def test_threads_of_a_process_fetch_a_shard_once(server: WebServer, tmp_path: Path) -> None:
    files = ShardFiles(cache=CacheOptions(folder=tmp_path))

    def read(name: str) -> bytes:
        with files.open(f"{server.url}/{name}.tar") as file:
            return file.read()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, "ababacbc")) == [DATA] * 8
    assert [bodies(server, f"/{name}.tar") for name in "abc"] == [1, 1, 1]


def test_a_killed_fetch_is_taken_over(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.gate = threading.Event()
    first = started(READ, tmp_path, f"{server.url}/a.tar")
    soon(lambda: bodies(server, "/a.tar"))
    second = started(READ, tmp_path, f"{server.url}/a.tar")
    soon(lambda: sum(headers.get("range") == "bytes=0-0" for headers in server.headers) == 2)
    assert second.poll() is None
    assert bodies(server, "/a.tar") == 1
    first.kill()
    first.communicate(timeout=10)
    soon(lambda: bodies(server, "/a.tar") == 2)
    server.gate.set()
    assert finished(second) == sha256(DATA)
    assert copies(tmp_path) == ["a.tar"]


def test_what_killed_processes_leave_is_cleared_up(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.gate = threading.Event()
    reader = started(READ, tmp_path, f"{server.url}/a.tar")
    soon(lambda: bodies(server, "/a.tar"))
    living = started(READ, tmp_path, f"{server.url}/b.tar")
    soon(lambda: bodies(server, "/b.tar"))
    reader.kill()
    reader.communicate(timeout=10)
    assert copies(tmp_path) == ["a.tar.lock", "a.tar.part", "b.tar.lock", "b.tar.part"]
    other = started(READ, tmp_path, f"{server.url}/c.tar")
    soon(lambda: copies(tmp_path) == ["b.tar.lock", "b.tar.part", "c.tar.lock", "c.tar.part"])
    server.gate.set()
    assert finished(living) == finished(other) == sha256(DATA)
    assert copies(tmp_path) == ["b.tar", "c.tar"]


def test_a_copy_that_lost_bytes_is_fetched_again(server: WebServer, tmp_path: Path) -> None:
    files = ShardFiles(cache=CacheOptions(folder=tmp_path))
    files.open(f"{server.url}/a.tar").close()
    (copy,) = tmp_path.glob("*.tar")
    os.truncate(copy, 0)
    with files.open(f"{server.url}/a.tar") as file:
        assert file.read() == DATA


def test_processes_that_are_killed_at_random(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.files = {f"/{n}.tar": random.Random(n).randbytes(300_000 + n) for n in range(8)}
    script = (
        "import random, sys\n"
        "from collections import deque\n"
        "from discernible.pipeline.reading.files import CacheOptions, ShardFiles\n"
        "files = ShardFiles(cache=CacheOptions(folder=sys.argv[1], limit_bytes=700_000))\n"
        "held = deque()\n"
        "while True:\n"
        "    n = random.randrange(8)\n"
        "    held.append((n, files.open(f'{sys.argv[2]}/{n}.tar')))\n"
        "    if len(held) > 2:\n"
        "        n, file = held.popleft()\n"
        "        assert file.read() == random.Random(n).randbytes(300_000 + n)\n"
        "        file.close()\n"
        "        print(n, flush=True)\n"
    )
    chosen = random.Random(4)
    running = [started(script, tmp_path, server.url) for _ in range(4)]
    for _ in range(12):
        time.sleep(chosen.uniform(0, 0.5))
        place = chosen.randrange(4)
        assert running[place].poll() is None
        running[place].kill()
        running[place] = started(script, tmp_path, server.url)
    for process in running:
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline().strip().isdecimal()


def test_the_least_recently_used_go_first(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "foreign.tar").write_bytes(bytes(9 << 20))
    (tmp_path / f"discernible-{'0' * 40}-own.txt").write_bytes(bytes(9 << 20))
    (tmp_path / f"discernible-{'0' * 40}-folder.tar").mkdir()
    (tmp_path / f"discernible-{'0' * 40}-link.tar").symlink_to(tmp_path / "foreign.tar")
    kept = sorted(path.name for path in tmp_path.iterdir())
    files = ShardFiles(cache=CacheOptions(folder=tmp_path, limit_bytes=2 * len(DATA) + 100))
    for name in "abacb":
        files.open(f"{server.url}/{name}.tar").close()
        # The clock of file systems is coarse.
        time.sleep(0.02)
    # a, b, a again, then c in the place of b, then b in that of a.
    assert [bodies(server, f"/{name}.tar") for name in "abc"] == [1, 2, 1]
    there = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in there if name in kept] == kept
    assert {name[53:] for name in there if name not in kept} == {"", "b.tar", "c.tar"}


def test_what_is_read_stays(server: WebServer, tmp_path: Path, started: Start) -> None:
    files = ShardFiles(cache=CacheOptions(folder=tmp_path, limit_bytes=1))
    with files.open(f"{server.url}/a.tar") as first:
        assert finished(started(READ.replace("1])", "1], limit_bytes=1)"), tmp_path, f"{server.url}/b.tar"))
        assert copies(tmp_path) == ["a.tar", "b.tar"]
        with files.open(f"{server.url}/a.tar") as second, files.open(f"{server.url}/c.tar") as third:
            assert copies(tmp_path) == ["a.tar", "c.tar"]
            assert first.read() == second.read() == third.read() == DATA
    assert bodies(server, "/a.tar") == 1
    files.open(f"{server.url}/b.tar").close()
    assert copies(tmp_path) == ["b.tar"]


def test_room_is_kept_for_what_others_fetch(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.gate = threading.Event()
    server.files["/small.tar"] = DATA[:1]
    files = ShardFiles(cache=CacheOptions(folder=tmp_path, limit_bytes=len(DATA) + 1))
    files.open(f"{server.url}/small.tar").close()
    other = started(READ.replace("1])", f"1], limit_bytes={len(DATA) + 1})"), tmp_path, f"{server.url}/a.tar")
    soon(lambda: bodies(server, "/a.tar"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == len(DATA) + 1
    server.files["/small2.tar"] = DATA[:1]
    files.open(f"{server.url}/small2.tar").close()
    assert copies(tmp_path) == ["a.tar.lock", "a.tar.part", "small2.tar"]
    server.gate.set()
    assert finished(other) == sha256(DATA)


def served(server: WebServer, converted: Path) -> str:
    """Put a converted shard with its receipt on the server; its URL."""
    for name in ("00000.tar", "00000.json"):
        server.files[f"/{name}"] = (converted / name).read_bytes()
    return f"{server.url}/00000.tar"


def test_what_comes_is_held_against_the_receipt(server: WebServer, converted: Path, tmp_path: Path) -> None:
    place = served(server, converted)
    good = server.files["/00000.tar"]
    files = ShardFiles(cache=CacheOptions(folder=tmp_path / "cache"))
    server.files["/00000.tar"] = good[:1000] + bytes([good[1000] ^ 1]) + good[1001:]
    with pytest.raises(ShardError, match="the SHA-256 of what came is not the one that its receipt records, 3 times"):
        files.open(place)
    assert bodies(server, "/00000.tar") == 3
    server.files["/00000.tar"] = good[:-512]
    with pytest.raises(ShardError, match=rf"it has {len(good) - 512} bytes, not the {len(good)} that its receipt"):
        files.open(place)
    assert copies(tmp_path / "cache") == []
    server.files["/00000.tar"] = good
    with files.open(place) as file:
        assert sha256(file.read()) == list_receipts(str(converted))["00000"].tar.sha256
    server.files["/00000.json"] = server.files["/00000.json"].replace(b'"committed": ', b'"committed": 1')
    with pytest.raises(ShardError, match="altered") as caught:
        ShardFiles(cache=CacheOptions(folder=tmp_path / "cache")).open(place)
    assert caught.value.shard == "00000"


def test_a_body_that_is_corrupt_once(server: WebServer, converted: Path, tmp_path: Path) -> None:
    place = served(server, converted)
    good = server.files["/00000.tar"]
    server.spoilt = 2
    with ShardFiles(cache=CacheOptions(folder=tmp_path / "cache")).open(place) as file:
        assert file.read() == good
    assert bodies(server, "/00000.tar") == 3


def test_a_server_that_does_not_tell_lengths(server: WebServer, converted: Path, tmp_path: Path) -> None:
    place = served(server, converted)
    server.lengths = server.ranges = False
    files = ShardFiles(cache=CacheOptions(folder=tmp_path / "cache"))
    with files.open(place) as file:
        assert file.read() == server.files["/00000.tar"]
    with pytest.raises(StorageError, match="does not say how long it is"):
        files.open(f"{server.url}/a.tar")
    for wrong in (server.files["/00000.tar"][:-1], server.files["/00000.tar"] + b"x"):
        server.files["/00000.tar"] = wrong
        with pytest.raises(ShardError, match="more or fewer bytes came"):
            ShardFiles(cache=CacheOptions(folder=tmp_path / "other")).open(place)


def test_signed_urls_stay_secret(server: WebServer, tmp_path: Path) -> None:
    files = ShardFiles(cache=CacheOptions(folder=tmp_path))
    place = f"{server.url.replace('http://', 'http://me:topsecret@')}/a.tar?X-Amz-Signature=topsecret"
    with files.open(place) as file:
        assert file.read() == DATA
    assert "/a.json?X-Amz-Signature=topsecret" in server.received
    assert not any("secret" in path.name for path in tmp_path.iterdir())
    server.statuses = [404, 403]
    with pytest.raises(StorageError, match="access is denied") as caught:
        files.open(place.replace("a.tar", "c.tar"))
    assert str(caught.value).endswith(f"[shard {server.url}/c.tar]")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("where", ["below a file", "in a place without files"])
def test_folders_that_cannot_be_used(server: WebServer, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / "file" / "cache" if where == "below a file" else Path("/proc/cache")
    with pytest.raises(
        StorageError, match=r"the cache folder /.*/cache cannot be used \(.*\): name one on a local disk"
    ):
        ShardFiles(cache=CacheOptions(folder=folder)).open(f"{server.url}/a.tar")


def test_a_disk_that_is_full(server: WebServer, tmp_path: Path, started: Start) -> None:
    server.files["/small.tar"] = DATA[:10_000]
    script = (
        "import resource, sys\n"
        "from discernible.errors import StorageError\n"
        "from discernible.pipeline.reading.files import CacheOptions, ShardFiles\n"
        "files = ShardFiles(cache=CacheOptions(folder=sys.argv[1]))\n"
        "unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "for limit in (0, 20000, unlimited[0]):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))\n"
        "    for place in sys.argv[2:]:\n"
        "        try:\n"
        "            with files.open(place) as file:\n"
        "                print(len(file.read()))\n"
        "        except StorageError as error:\n"
        "            print(error.message)\n"
    )
    told = finished(started(script, tmp_path, f"{server.url}/a.tar", f"{server.url}/small.tar")).splitlines()
    full = (
        f"the cache folder {tmp_path} is full (File too large): "
        "free space there, name another one, or give it a smaller limit"
    )
    assert told == [full, full, full, "10000", str(len(DATA)), "10000"]
    assert copies(tmp_path) == ["a.tar", "small.tar"]


def test_a_temporary_cache_goes_with_its_loader(server: WebServer, temporary: Path, started: Start) -> None:
    files = ShardFiles()
    assert list(temporary.iterdir()) == []
    for close in (True, False):
        with files.open(f"{server.url}/a.tar") as file:
            (folder,) = temporary.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            if close:
                files.close()
                with pytest.raises(PipelineError, match="closed"):
                    files.open(f"{server.url}/a.tar")
            else:
                del files
            assert file.read() == DATA
            assert list(temporary.iterdir()) == []
        if close:
            files = ShardFiles()
    assert finished(started(READ.replace("cache=CacheOptions(folder=sys.argv[1])", ""), "", f"{server.url}/a.tar"))
    assert list(temporary.iterdir()) == []


# Python 3.12 warns when a process with threads forks.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_processes_share_a_temporary_cache(server: WebServer, temporary: Path) -> None:
    files = ShardFiles()
    place = f"{server.url}/a.tar"
    with files.open(place):
        pass
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with files.open(place) as file, files.open(f"{server.url}/b.tar") as other:
                status = 0 if file.read() == other.read() == DATA else 1
            # It is not the child's to remove.
            files.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (folder,) = temporary.iterdir()
    assert {path.name[53:] for path in folder.glob("*.tar")} == {"a.tar", "b.tar"}
    script = (
        "import multiprocessing, sys\n"
        "from discernible.pipeline.reading.files import ShardFiles\n"
        "def read(files, place):\n"
        "    with files.open(place) as file:\n"
        "        assert len(file.read()) == 1 << 20\n"
        "    files.close()\n"
        "if __name__ == '__main__':\n"
        "    files = ShardFiles()\n"
        "    for _ in range(2):\n"
        "        worker = multiprocessing.get_context('spawn').Process(target=read, args=(files, sys.argv[1]))\n"
        "        worker.start()\n"
        "        worker.join()\n"
        "        assert worker.exitcode == 0\n"
    )
    program = temporary.parent / "program.py"
    program.write_text(script)
    before = bodies(server, "/c.tar")
    subprocess.run([sys.executable, program, f"{server.url}/c.tar"], check=True, timeout=60)
    assert bodies(server, "/c.tar") == before + 1
    assert list(temporary.iterdir()) == [folder]
    files.close()
    assert list(temporary.iterdir()) == []


def test_temporary_caches_of_killed_processes_are_removed(server: WebServer, temporary: Path, started: Start) -> None:
    (temporary / "discernible-cache-foreign").mkdir()
    stay = READ.replace("cache=CacheOptions(folder=sys.argv[1])", "") + "import time; time.sleep(60)\n"
    both = [started(stay, "", f"{server.url}/a.tar") for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == sha256(DATA)
    both[0].send_signal(signal.SIGKILL)
    both[0].communicate(timeout=10)
    assert len(list(temporary.iterdir())) == 3
    files = ShardFiles()
    files.open(f"{server.url}/a.tar").close()
    assert len(list(temporary.iterdir())) == 3
    both[1].kill()
    both[1].communicate(timeout=10)
    files.close()
    assert len(list(temporary.iterdir())) == 2


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_loader_reads_the_same_from_everywhere(
    store: str, folder: Path, temporary: Path, request: pytest.FixtureRequest
) -> None:
    def keys(place: str | Path) -> list[str]:
        with CompressedLoader(
            place, batch_size=5, as_dict=True, device="cpu", shuffle=True, seed=3, workers=2, mp_context="fork"
        ) as loader:
            return [key for _ in range(2) for batch in loader for key in batch["keys"]]

    expected = keys(folder)
    if store == "s3":
        bucket = request.getfixturevalue("bucket")
        for path in folder.iterdir():
            open_storage(bucket).put(path.name, path.read_bytes())
        assert keys(bucket) == expected
    else:
        with WebServer(files={f"/{path.name}": path.read_bytes() for path in folder.iterdir()}) as server:
            assert keys(f"{server.url}/{{00000..00003}}.tar?signature=secret") == expected
            assert {bodies(server, f"/0000{number}.tar") for number in range(4)} == {1}
    assert list(temporary.iterdir()) == []


def test_options_validate_themselves() -> None:
    for wrong in ({"limit_bytes": 0}, {"folder": ""}, {"folder": "s3://bucket/x"}):
        with pytest.raises(ConfigError):
            CacheOptions(**wrong)  # type: ignore[arg-type]


def test_names_of_copies() -> None:
    name = cache_name("../a b\0é" + 100 * "x" + ".tar", "s3://b/x.tar", "1")
    assert len(name) == 12 + 40 + 1 + 40 + 4
    assert set(name[53:]) <= set("x.tar")
    assert cache_name("..", "a") != cache_name("..", "b")
    assert "/" not in cache_name("../../etc", "\udcff")
    assert cache_name("x", "a", "bc") != cache_name("x", "ab", "c")
