"""Machines that lack something: a home, temporary files, shared memory, open files, UTF-8. Each in a real process."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from ..pipeline.loader_setup import write_shard

REPOSITORY = Path(__file__).resolve().parents[2]


def python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter; variables that are empty are not set."""
    wanted = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={name: value for name, value in wanted.items() if value},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
    )


# The least that shows it: every kernel is declared, one is compiled.
KERNELS = """
import numpy as np
from discernible.codec.network import byte_kernels, window_kernels
from discernible.codec.stream import quantise_kernels, rans_kernels
print(rans_kernels.__file__, rans_kernels._median_edge(5, 2, 4))
"""


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A folder whose package can be imported, but in which numba can keep nothing."""
    package = tmp_path / "place" / "discernible"
    rooms = [REPOSITORY / "codec", *(each.parent for each in (REPOSITORY / "codec").glob("*/__init__.py"))]
    for source in [*REPOSITORY.glob("*.py"), *(file for room in rooms for file in room.glob("*.py"))]:
        target = package / source.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for room in rooms:
        (package / room.relative_to(REPOSITORY) / "__pycache__").write_text("not a folder")
    return package.parent


@pytest.mark.parametrize("place", ["private", "open", "none"])
def test_kernels_without_a_home_or_a_package_folder(sealed: Path, tmp_path: Path, place: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = temporary / f"discernible-kernels-{os.getuid()}"
    if place == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif place == "none":
        folder.write_text("not a folder")
    nowhere: Mapping[str, str] = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/x")
    done = python("-c", KERNELS, cwd=tmp_path, PYTHONPATH=str(sealed), TMPDIR=str(temporary), **nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(sealed / "discernible/codec/stream/rans_kernels.py"), "3"]
    kept = list(temporary.rglob("*.nbi"))
    if place == "private":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert any("_median_edge" in path.name for path in kept)
    else:
        assert kept == []


# What a conversion says at its end, and two answers as JSON, through the command line's own entry.
SAYS = """
import sys
from discernible.jobs import cli
from discernible.jobs.console import terminal
from discernible.jobs.console.facts import byte_words
from discernible.jobs.console.facts import facts

def command(*_):
    if "--json" in sys.argv:
        terminal.print_json({"name": "caf\\xe9 \\u2192 \\udcff"})
    else:
        terminal.print_result(facts([("bytes", byte_words(300, 100)), ("in", "caf\\xe9 \\udcff")]))
        terminal.progress_console().print("300 B \\u2192 100 B (3.0\\xd7)")
    return 0

cli.app = lambda *_, **__: command()
cli.main(sys.argv[1:])
"""

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, ASCII, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "utf-8"}],
    ids=["ascii", "locale", "latin-1", "utf-8"],
)
def test_output_that_cannot_show_every_sign(tmp_path: Path, environment: dict[str, str]) -> None:
    settings = {"PYTHONPATH": str(REPOSITORY.parent), **environment}
    told = python("-c", SAYS, cwd=tmp_path, **settings)
    assert told.returncode == 0, told.stderr
    if environment.get("PYTHONIOENCODING") == "utf-8":
        assert "300 B → 100 B (3.0×" in told.stdout
    else:
        assert "300 B -> 100 B (3.0" in told.stdout
        assert "300 B -> 100 B (3.0" in told.stderr
    answer = python("-c", SAYS, "--json", cwd=tmp_path, **settings)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"name": "café → \udcff"}


NAMES = """
import sys
from pathlib import Path
from discernible.pipeline.storage.local import LocalStorage
storage = LocalStorage(Path(sys.argv[1]))
print(ascii([(entry.name, storage.read(entry.name)) for entry in storage.list("caf")]))
storage.put("\\u96ea/\\udcff.txt", b"2")
"""


def test_names_of_files_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    for number, environment in enumerate(({}, ASCII)):
        folder = tmp_path / str(number)
        (folder / "café").mkdir(parents=True)
        (folder / "café" / "ü.txt").write_bytes(b"1")
        done = python("-c", NAMES, folder, cwd=tmp_path, PYTHONPATH=str(REPOSITORY.parent), **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[('caf\\xe9/\\xfc.txt', b'1')]\n"
        assert (folder / "雪" / "\udcff.txt").read_bytes() == b"2"


def in_a_namespace(mounts: str) -> list[str]:
    """The beginning of a command that runs in a mount namespace of its own, in which these commands were run."""
    start = ["unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no mount namespaces")
    return start


LOADS = """
import logging, sys
from discernible import CompressedLoader
logging.basicConfig(level=logging.DEBUG)
if __name__ == "__main__":
    with CompressedLoader(sys.argv[1], batch_size=8, workers=1, device="cpu", labels=()) as loader:
        print([len(images) for images, in loader])
"""


@pytest.mark.slow
def test_a_loader_with_little_shared_memory_and_few_open_files(tmp_path: Path) -> None:
    from discernible import Codec

    pictures = [torch.randint(256, (3, 128, 128), dtype=torch.uint8) for _ in range(4)]
    streams = Codec.load(device="cpu").encode(pictures, quality=50)
    write_shard(tmp_path / "x.tar", [(f"k{n}", {"dci": streams[n % 4]}) for n in range(16)])
    script = tmp_path / "load.py"
    script.write_text(LOADS)
    # Enough for semaphores, and for no batch.
    start = in_a_namespace("mount -t tmpfs -o size=64k none /dev/shm")
    done = subprocess.run(
        [*start, "sh", "-c", 'ulimit -n 256; exec "$@"', "sh", sys.executable, script, tmp_path / "x.tar"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[8, 8]\n"), done.stderr
    assert done.stderr.count("a batch goes through a pipe") == 2


@pytest.mark.slow
def test_a_conversion_with_next_to_nothing(tmp_path: Path) -> None:
    """No home, nothing to write in the usual temporary folders, 256 open files, ASCII; only its own folder."""
    start = in_a_namespace("mount --bind . /mnt && for it in /tmp /var/tmp; do mount -t tmpfs -o ro none $it; done")
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (24, 16), (200, 30, 90)).save(source / "café.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": "/dev/null/x", "TMPDIR": "/dev/null/x", "PYTHONPATH": str(REPOSITORY.parent), **ASCII}
    command = [sys.executable, "-m", "discernible.jobs", "compress", "source", "out"]
    done = subprocess.run(
        [*start, "sh", "-c", 'cd /mnt && ulimit -n 256 && exec "$@"', "sh", *command],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "images        1 committed" in done.stdout
    assert " -> " in done.stdout
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert tar.getnames() == ["café.dci"]
