"""A destination carries the weights that it was made with, from the first shard to the last copy of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from discernible import CompressedLoader
from discernible.codec import Codec
from discernible.codec.weights_file import find_weights, read_weights_file
from discernible.errors import DestinationError, WeightsNotFoundError
from discernible.jobs.conversion import compress as compress_module
from discernible.jobs.conversion.compress import compress
from discernible.jobs.conversion.freeze import freeze_plan
from discernible.jobs.conversion.inspect import FolderFacts, StreamFacts, inspect_path
from discernible.jobs.conversion.plan import make_plan
from discernible.jobs.conversion.retry import retry
from discernible.jobs.conversion.spec import JobSpec
from discernible.jobs.conversion.verify import verify_destination
from discernible.jobs.pages.view import write_view
from discernible.pipeline.convert.decompress import DecompressConfig, decompress
from discernible.pipeline.reading.carried_weights import carried_name, carry_weights
from discernible.pipeline.storage.opening import open_storage

from ...codec.make_golden import GOLDEN

TINY = GOLDEN / "tiny.safetensors"


@pytest.fixture(scope="module")
def made(photos: Mapping[str, NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> JobSpec:
    """A conversion with weights of one's own, one of whose images is broken. The weights file is gone."""
    root = tmp_path_factory.mktemp("made")
    (root / "in").mkdir()
    for name, photo in list(photos.items())[:3]:
        Image.fromarray(photo[:, 90:130, 60:116].transpose(1, 2, 0)).save(root / "in" / f"{name}.png")
    (root / "in" / "broken.png").write_bytes(b"no photograph")
    shutil.copy(TINY, root / "mine.safetensors")
    spec = JobSpec.of(
        source=str(root / "in"), destination=str(root / "out"), weights=str(root / "mine.safetensors"), workers=1
    )
    assert compress(spec).status == "quarantined"
    (root / "mine.safetensors").unlink()
    return spec


@pytest.fixture
def copied(made: JobSpec, tmp_path: Path) -> Path:
    """A copy of the destination somewhere else."""
    return Path(shutil.copytree(made.destination, tmp_path / "copied"))


@pytest.fixture
def file_of(copied: Path) -> Path:
    (file,) = (copied / "weights").iterdir()
    return file


def forget_sha256(folder: Path) -> None:
    """Make a plan one of those that were written before destinations carried weights."""
    document = json.loads((folder / "plan.json").read_text())
    del document["weights"]["sha256"], document["checksum"]
    (folder / "plan.json").write_text(json.dumps(document))


def test_the_file_lies_beside_the_index_and_in_the_plan(copied: Path, file_of: Path) -> None:
    assert file_of.name == f"{Codec.load(TINY, device='cpu').fingerprint}.safetensors"
    assert file_of.read_bytes() == TINY.read_bytes()
    recorded = json.loads((copied / "plan.json").read_text())["weights"]["sha256"]
    assert recorded == hashlib.sha256(TINY.read_bytes()).hexdigest()
    assert {path.name for path in copied.iterdir() if path.is_dir()} == {"weights"}
    report = verify_destination(str(copied), deep=True)
    assert (report.problems, report.committed) == ((), 3)
    assert not any("weights" in note for note in report.notes)


def test_a_copy_is_read_where_nothing_else_is_left(copied: Path, tmp_path: Path) -> None:
    with tarfile.open(copied / "00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".dci"))
        stream = tar.extractfile(name)
        assert stream is not None
        (copied / "one.dci").write_bytes(stream.read())
    with CompressedLoader(copied, labels=(), batch_size=3, device="cpu") as loader:
        (images,) = next(iter(loader))
    assert len(images) == 3
    report = decompress(str(copied), str(tmp_path / "back"), DecompressConfig(device="cpu"))
    assert (report.images, report.failures) == (3, ())
    shown = write_view([copied, copied / "one.dci"], tmp_path / "page.html", device="cpu")
    assert (shown.shown, "“tiny”" in shown.page.read_text()) == (4, True)
    (file,) = (copied / "weights").iterdir()
    for path in (copied, copied / "one.dci"):
        facts = inspect_path(str(path))
        assert isinstance(facts, FolderFacts | StreamFacts)
        document: Any = facts.to_json()
        assert (document.get("weights_file") or document["weights"]["file"]) == str(file)
    file.unlink()
    facts = inspect_path(str(copied / "one.dci"))
    assert isinstance(facts, StreamFacts)
    assert facts.to_json()["weights_file"] is None
    assert str(file) in facts.weights.words
    with pytest.raises(WeightsNotFoundError, match=str(file)):
        write_view([copied], tmp_path / "page.html", device="cpu")


def test_what_is_mended_is_retried_with_them(made: JobSpec, copied: Path, tmp_path: Path) -> None:
    broken = Path(made.source) / "broken.png"
    before = broken.read_bytes()
    try:
        broken.write_bytes(next(path for path in broken.parent.iterdir() if path != broken).read_bytes())
        assert retry(str(copied), device="cpu").recovered == 1
        report = verify_destination(str(copied), deep=True)
        assert (report.problems, report.committed) == ((), 4)
    finally:
        broken.write_bytes(before)


def test_verify_tells_a_missing_file(copied: Path, file_of: Path) -> None:
    file_of.unlink()
    (problem,) = verify_destination(str(copied)).problems
    assert (problem.kind, problem.shard) == ("weights", "weights")
    assert f"weights/{file_of.name} is missing" in problem.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TINY.read_bytes()[:-1] + b"\x01", "holds the weights"),
        (b"nothing", "not a readable safetensors file"),
        (find_weights("default").read_bytes(), "holds the weights"),
    ],
    ids=["byte", "text", "others"],
)
def test_verify_tells_an_altered_file(copied: Path, file_of: Path, content: bytes, words: str) -> None:
    file_of.write_bytes(content)
    report = verify_destination(str(copied), deep=True)
    (problem,) = report.problems
    assert problem.kind == "weights"
    assert words in problem.message
    assert "no stream was decoded" in " ".join(report.notes)


def renamed(path: Path) -> Path:
    """The tiny weights under another name: the same fingerprint in another file."""
    with safe_open(TINY, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = {**file.metadata(), "name": "renamed"}
    save_file(tensors, path, meta)
    return path


def test_verify_tells_another_file_of_the_same_weights(copied: Path, file_of: Path) -> None:
    renamed(file_of)
    report = verify_destination(str(copied), deep=True)
    (problem,) = report.problems
    assert "SHA-256 is not the one in the plan" in problem.message
    assert "no stream was decoded" not in " ".join(report.notes), "they decode it all the same"


def test_destinations_of_before_stay_readable(copied: Path, file_of: Path) -> None:
    forget_sha256(copied)
    assert verify_destination(str(copied)).problems == ()
    file_of.rename(copied.parent / file_of.name)
    report = verify_destination(str(copied))
    assert report.ok
    assert [f"weights/{file_of.name}" in note for note in report.notes].count(True) == 1
    file_of.write_bytes(b"nothing")
    (problem,) = verify_destination(str(copied)).problems
    assert problem.kind == "weights"


def with_weights(spec: JobSpec, weights: str) -> JobSpec:
    return dataclasses.replace(spec, convert=dataclasses.replace(spec.convert, weights=weights))


def carried_by(spec: JobSpec, *, resumed: bool) -> None:
    compress_module._carry_weights(spec, spec.open_destination(), resumed=resumed)


def test_going_on_puts_back_what_is_missing(made: JobSpec, copied: Path, file_of: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(with_weights(made, str(TINY)), destination=str(copied))
    file_of.unlink()
    other = with_weights(spec, str(renamed(tmp_path / "renamed.safetensors")))
    with pytest.raises(DestinationError, match=r"renamed\.safetensors is another file"):
        carried_by(other, resumed=True)
    carried_by(spec, resumed=True)
    assert file_of.read_bytes() == TINY.read_bytes()
    carried_by(other, resumed=True)
    assert file_of.read_bytes() == TINY.read_bytes(), "what is there stays"
    forget_sha256(copied)
    file_of.unlink()
    carried_by(other, resumed=True)
    assert verify_destination(str(copied)).ok


def test_a_plan_that_is_written_again_names_the_file_that_is_there(made: JobSpec, copied: Path, file_of: Path) -> None:
    """Another file of the same weights, in the old place, must not make what is there look altered."""
    other = renamed(Path(made.convert.weights))
    try:
        spec = dataclasses.replace(made, destination=str(copied))
        (copied / "plan.json").unlink()
        freeze_plan(make_plan(spec), spec.open_destination())
        carried_by(spec, resumed=False)
        recorded = json.loads((copied / "plan.json").read_text())["weights"]["sha256"]
        kept, given = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (file_of, other))
        assert recorded == kept != given
        assert verify_destination(str(copied)).ok
    finally:
        other.unlink()


def test_they_are_there_before_the_first_shard(made: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(with_weights(made, str(TINY)), destination=str(tmp_path / "new"))

    def dispatch(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_module, "_dispatch", dispatch)
    with pytest.raises(KeyboardInterrupt):
        compress(spec)
    name = carried_name(read_weights_file(TINY).fingerprint)
    assert (tmp_path / "new" / name).read_bytes() == TINY.read_bytes()
    # Another conversion in its place takes it away.
    with pytest.raises(KeyboardInterrupt):
        compress(dataclasses.replace(with_weights(spec, "default"), overwrite=True))
    (carried,) = (tmp_path / "new" / "weights").iterdir()
    assert carried.name == Path(carried_name(read_weights_file(find_weights("default")).fingerprint)).name


RACE = """
import sys
from pathlib import Path
from discernible.codec.weights_file import find_weights, read_weights_file
from discernible.pipeline.reading.carried_weights import carry_weights
from discernible.pipeline.storage.opening import open_storage

file, storage = read_weights_file(Path(sys.argv[1])), open_storage(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(carry_weights(storage, file))
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_several_writers_one_writes(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = str(tmp_path / "out") if kind == "local" else f"{request.getfixturevalue('bucket')}/out"
    command = [sys.executable, "-c", RACE, str(TINY), place]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    answers = [writer.communicate()[0].strip() for writer in writers]
    assert sorted(answers) == ["False", "False", "True"]
    storage = open_storage(place)
    (entry,) = storage.list()
    assert storage.read(entry.name) == TINY.read_bytes()


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    carry_weights(storage, read_weights_file(TINY))
    left = tmp_path / "out" / "weights" / ".x.safetensors.0123456789ab.part"
    left.write_bytes(b"half")
    assert storage.sweep() == 1
    assert not left.exists()
