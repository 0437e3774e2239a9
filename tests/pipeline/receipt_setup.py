"""A receipt with a value in each field, for the tests of what is read and of what is forged."""

from __future__ import annotations

from discernible.pipeline.shards.receipts import FileRef, Receipt, SampleIndex, SourceRef


def receipt(second_key: str, location: str) -> Receipt:
    """Of two samples, ``a`` and the one named, of a folder source there."""
    return Receipt.of(
        (SampleIndex("a", 0, 1024), SampleIndex(second_key, 1024, 2048)),
        name="00000",
        plan_id="p",
        source=SourceRef("folder", location),
        weights="default",
        fingerprint="00c0ffee",
        quality=50,
        committed=2,
        quarantined=1,
        passthrough=0,
        filtered=0,
        ignored=0,
        pixels=100,
        bytes_in=500,
        bytes_out=50,
        bytes_carried=7,
        psnr=31.25,
        tar=FileRef("00000.tar", 10240, "0" * 64),
        statistics=FileRef("00000.parquet", 99, "1" * 64),
    )
