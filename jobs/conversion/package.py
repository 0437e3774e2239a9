"""This very version of discernible as a wheel, for a cluster that does not have it.

The wheel names no dependencies: Ray installs wheels of a job with everything that they ask for, and would fetch PyTorch
anew for each job. What discernible needs must be in the cluster's image. Its version ends in a hash of the content,
because Ray keeps wheels by their file name.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ... import __version__

__all__ = ["build_wheel"]

_ROOMS = ("codec", "pipeline", "jobs")
_SUFFIXES = (".py", ".md", ".toml", ".safetensors")
# The oldest date that a zip file can hold; a real one would change the file without a change of its content.
_DATE = (1980, 1, 1, 0, 0, 0)


def build_wheel(folder: Path) -> Path:
    """Write the wheel of the running package into ``folder``; the same package gives the same bytes."""
    root = Path(__file__).resolve().parents[2]
    files = {f"discernible/{path.relative_to(root).as_posix()}": path.read_bytes() for path in _files(root)}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    version = f"{__version__}+{digest.hexdigest()[:12]}"
    info = f"discernible-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: discernible\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: discernible\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_hash(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"discernible-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return wheel


def _files(root: Path) -> Iterator[Path]:
    # Named one by one: in a checkout the root holds tests, benchmarks and environments as well.
    yield from sorted(path for path in root.iterdir() if path.suffix == ".py" or path.name == "py.typed")
    for room in _ROOMS:
        yield from sorted(path for path in (root / room).rglob("*") if path.suffix in _SUFFIXES and path.is_file())


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
