"""Images that were kept as they were: every reader takes the member that the conversion took for the image."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from discernible import CompressedDataset, CompressedLoader
from discernible.codec import Codec
from discernible.errors import ImageMissingError, PipelineError, SampleFormatError, ShardError
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.convert.retry import retry_shard
from discernible.pipeline.images.policy import PixelPolicy
from discernible.pipeline.shards.kept import ImageMembers, KeptImages, KeptRecorder
from discernible.pipeline.shards.receipt_table import ReceiptTable
from discernible.pipeline.shards.receipts import Receipt, read_receipt
from discernible.pipeline.shards.statistics import iter_rows
from discernible.pipeline.sources.listing import Listing
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.opening import open_storage
from discernible.pipeline.verify.destination import verify

from ..receipt_setup import receipt

RED, BLUE = (255, 0, 0), (0, 0, 255)
MakeTar = Callable[..., Path]


def flat(colour: tuple[int, ...], form: str, size: tuple[int, int] = (48, 32)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(sink, form)
    return sink.getvalue()


PNG = flat(RED, "PNG")
MASK = flat((3, 3, 3), "PNG", (16, 16))
PREVIEW = flat(BLUE, "JPEG", (16, 16))


def convert(codec: Codec, source: Path, out: Path, *, carry: tuple[str, ...] = (), **options: Any) -> Receipt:
    """Convert a source of one shard. No image is as good as ``min_psnr``, so that all are kept."""
    config = ConvertConfig(min_psnr=90.0, lossy_maps=True, carry=carry, **options)
    (shard,) = open_source(str(source), Listing(carry=tuple(carry))).shards
    return ShardConverter(config, codec=codec).convert(shard, str(out), "plan").receipt


def loaded(out: Path) -> dict[str, NDArray[np.uint8] | str]:
    """What loader and dataset, which must agree, give for each sample: the pixels or the kind of error."""
    (tar,) = out.glob("*.tar")
    keys = [key for key, _ in keys_and_members(tar)]
    dataset = CompressedDataset(str(out), labels=())
    found: dict[str, NDArray[np.uint8] | str] = {}
    for number, key in enumerate(keys):
        try:
            found[key] = dataset[number][0].numpy()
        except (ImageMissingError, SampleFormatError) as exc:
            found[key] = type(exc).__name__ if exc.key == key else f"of the sample {exc.key}"
    good: dict[str, NDArray[np.uint8]] = {}
    with (
        CompressedLoader(
            str(out), batch_size=1, labels=(), as_dict=True, device="cpu", on_error="skip", workers=0
        ) as loader,
        # Where no sample of the epoch can be used.
        suppress(PipelineError),
    ):
        good |= {batch["keys"][0]: batch["images"][0].numpy() for batch in loader}
    assert sorted(good) == sorted(key for key, value in found.items() if not isinstance(value, str))
    for key, pixels in good.items():
        assert np.array_equal(pixels, found[key])
    return found


def keys_and_members(tar: Path) -> list[tuple[str, list[str]]]:
    from discernible.pipeline.shards.groups import iter_tar_samples

    with tar.open("rb") as stream:
        return [(sample.key, list(sample.members)) for sample in iter_tar_samples(stream, source=tar.name)]


def test_a_carried_image_of_a_folder_is_not_the_image(tmp_path: Path, codec: Codec) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, data in {"x.png": PNG, "x.jpg": PREVIEW, "y.png": PNG, "y.jpg": PREVIEW}.items():
        (source / name).write_bytes(data)
    made = convert(codec, source, tmp_path / "out", carry=("*.jpg",))
    assert (made.committed, made.passthrough) == (0, 2)
    for pixels in loaded(tmp_path / "out").values():
        assert not isinstance(pixels, str)
        assert pixels.shape == (3, 32, 48)
        assert (pixels.reshape(3, -1).T == RED).all()
    assert verify(str(tmp_path / "out"), deep=True).ok


@pytest.mark.parametrize(
    ("samples", "options", "expected"),
    [
        # A sample of which only the mask is there is no image.
        (
            {"a": {"jpg": flat(RED, "JPEG"), "png": MASK}, "b": {"png": MASK, "cls": b"1"}},
            {"carry": ("*.png",)},
            {"a": (32, 48), "b": "ImageMissingError"},
        ),
        # The member that was named, with or without another image beside it.
        (
            {"a": {"rgb.png": PNG, "jpg": PREVIEW}, "b": {"rgb.png": PNG}},
            {"image_member": "rgb.png"},
            {"a": (32, 48), "b": (32, 48)},
        ),
        # Passed through without an image of that name.
        (
            {"a": {"rgb.png": PNG}, "b": {"jpg": PREVIEW}, "c": {"txt": b"x"}},
            {"image_member": "rgb.png", "missing_image": "passthrough"},
            {"a": (32, 48), "b": "ImageMissingError", "c": "ImageMissingError"},
        ),
        # Told by its content.
        ({"a": {"img": PNG, "cls": b"1"}, "b": {"png": PNG}}, {}, {"a": (32, 48), "b": (32, 48)}),
    ],
)
def test_images_of_a_tar(
    tmp_path: Path,
    codec: Codec,
    make_tar: MakeTar,
    samples: Mapping[str, Mapping[str, bytes]],
    options: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    made = convert(codec, make_tar("s.tar", samples), tmp_path / "out", **options)
    assert (made.committed, made.passthrough) == (0, len(samples))
    found = loaded(tmp_path / "out")
    assert {key: value if isinstance(value, str) else value.shape[1:] for key, value in found.items()} == expected
    # The receipt goes through its two other forms unchanged.
    assert read_receipt(str(tmp_path / "out"), "s") == made
    assert list(ReceiptTable([made.head()])) == [made.head()]


def test_streams_and_what_was_carried_beside_them(
    tmp_path: Path, converter: ShardConverter, make_tar: MakeTar, thumbnails: dict[str, bytes]
) -> None:
    photo = thumbnails["china0.jpg"]
    tar = make_tar("s.tar", {"a": {"x.dci": b"of another", "jpg": photo}, "b": {"img": photo, "dci": b"not ours"}})
    (shard,) = open_source(str(tar)).shards
    made = converter.convert(shard, str(tmp_path / "out"), "plan").receipt
    # The stream would have taken the name of a member, or that of the stream.
    assert (made.committed, made.quarantined, made.kept_images) == (1, 1, None)
    errors = [row.error for _, row in iter_rows(str(tmp_path / "out"), [made]) if row.error]
    assert errors == ["the sample has a 'dci' member beside its image 'img'"]
    (pixels,) = loaded(tmp_path / "out").values()
    assert not isinstance(pixels, str)
    with Image.open(io.BytesIO(photo)) as image:
        assert pixels.shape[1:] == (image.height, image.width)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (PixelPolicy(background=BLUE), ((32, 48), BLUE)),
        (PixelPolicy(), ((32, 48), (255, 255, 255))),
        (PixelPolicy(background=BLUE, resize=16), ((16, 24), BLUE)),
    ],
)
def test_pixels_are_read_as_the_conversion_would_have(
    tmp_path: Path, codec: Codec, make_tar: MakeTar, policy: PixelPolicy, expected: tuple[Any, Any]
) -> None:
    tar = make_tar("s.tar", {"a": {"png": flat((9, 9, 9, 0), "PNG")}})
    assert convert(codec, tar, tmp_path / "out", pixels=policy).passthrough == 1
    pixels = loaded(tmp_path / "out")["a"]
    assert not isinstance(pixels, str)
    assert pixels.shape[1:] == expected[0]
    assert (pixels.reshape(3, -1).T == expected[1]).all()


def test_receipts_of_before_are_read_and_kept_images_not_guessed(
    tmp_path: Path, codec: Codec, make_tar: MakeTar, thumbnails: dict[str, bytes]
) -> None:
    tar = make_tar("s.tar", {"a": {"png": PNG, "jpg": PREVIEW}})
    made = convert(codec, tar, tmp_path / "out")
    old = replace(made, kept_images=None)
    assert b"kept_images" not in old.to_json()
    (tmp_path / "out" / "s.json").write_bytes(old.to_json())
    assert read_receipt(str(tmp_path / "out"), "s") == old
    assert loaded(tmp_path / "out") == {"a": "SampleFormatError"}


def test_a_record_that_does_not_fit_the_tar(tmp_path: Path, codec: Codec, make_tar: MakeTar) -> None:
    made = convert(codec, make_tar("s.tar", {"a": {"png": PNG}}), tmp_path / "out")
    assert made.kept_images is not None
    place = tmp_path / "out" / "s.json"
    place.write_bytes(replace(made, kept_images=replace(made.kept_images, image="jpg")).to_json())
    assert loaded(tmp_path / "out") == {"a": "SampleFormatError"}
    assert [problem.key for problem in verify(str(tmp_path / "out")).problems] == ["a"]
    place.write_bytes(replace(made, kept_images=replace(made.kept_images, pixels={"background": 3})).to_json())
    with pytest.raises(ShardError, match="not a receipt"):
        CompressedDataset(str(tmp_path / "out"), labels=())[0]
    for bad in ({"jpg": "x"}, {"jpg": 3}, {"jpg": "3-"}, {"jpg": ""}):
        forged = KeptImages("png", tuple(bad.items()))  # type: ignore[arg-type]
        with pytest.raises(ShardError, match="not a receipt"):
            Receipt.from_json(replace(made, kept_images=forged).to_json())


def test_a_retry_keeps_what_is_recorded(
    tmp_path: Path, codec: Codec, make_tar: MakeTar, thumbnails: dict[str, bytes]
) -> None:
    good: dict[str, dict[str, bytes]] = {
        "a": {"rgb.png": PNG, "jpg": PREVIEW},
        "b": {"rgb.png": PNG},
        "c": {"jpg": PREVIEW},
    }
    out = tmp_path / "out"
    convert(
        codec,
        make_tar("s.tar", good | {"b": {"rgb.png": b"broken"}}),
        out,
        image_member="rgb.png",
        missing_image="passthrough",
    )
    config = ConvertConfig(min_psnr=90.0, lossy_maps=True, image_member="rgb.png", missing_image="passthrough")
    (shard,) = open_source(str(make_tar("s.tar", good))).shards
    before = read_receipt(str(out), "s")
    assert before is not None
    assert (before.passthrough, before.quarantined) == (2, 1)
    after = retry_shard(ShardConverter(config, codec=codec), shard, open_storage(str(out)), before)
    assert (after.passthrough, after.quarantined) == (3, 0)
    found = loaded(out)
    assert {key: value if isinstance(value, str) else value.shape[1:] for key, value in found.items()} == {
        "a": (32, 48),
        "b": (32, 48),
        "c": "ImageMissingError",
    }


@given(st.lists(st.sampled_from(["stream", "png", "jpg", "", "img"]), max_size=40))
def test_every_record_is_found_again(images: list[str]) -> None:
    recorder = KeptRecorder()
    for number, image in enumerate(images):
        if image != "stream":
            recorder.add(number, image)
    made = replace(receipt("b", "/in"), kept_images=recorder.result({}))
    read = ImageMembers(Receipt.from_json(made.to_json()))
    for number, image in enumerate(images):
        if image != "stream":
            assert read.recorded(number) == image
