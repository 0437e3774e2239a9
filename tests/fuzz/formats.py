"""All formats that are fuzzed."""

from __future__ import annotations

from pathlib import Path

from . import documents, images, streams, tables, tars, training

__all__ = ["CORPUS", "FORMATS"]

CORPUS = Path(__file__).parent / "corpus"
"""Files that were findings once, in a folder for each format."""

FORMATS = {
    made.name: made for module in (streams, tars, documents, tables, training, images) for made in module.FORMATS
}
