"""The codec as users call it, with the shipped weights; golden streams; the same latents everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discernible import Codec
from discernible.codec import Latents, read_stream_info
from discernible.codec.metrics import psnr
from discernible.codec.quality import gain
from discernible.codec.stream.bitstream import pack_stream, parse_stream
from discernible.codec.stream.tables import PREDICTED
from discernible.errors import ConfigError, ImageError, StreamCorruptError, WeightsMismatchError

from .make_golden import CASES, GOLDEN, digest

DIGESTS = json.loads((GOLDEN / "latents.json").read_text())


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return Codec.load(GOLDEN / "tiny.safetensors", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def images(photos: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(photo[:, 40:200, 60:252].copy()) for photo in photos.values()]


def same(a: Latents, b: Latents) -> bool:
    return (
        np.array_equal(a.symbols, b.symbols)
        and np.array_equal(a.classes, b.classes)
        and (a.height, a.width, a.quality) == (b.height, b.width, b.quality)
    )


@given(height=st.integers(1, 50), width=st.integers(1, 50), quality=st.integers(1, 100), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40)
def test_any_size_and_quality_comes_back(tiny: Codec, height: int, width: int, quality: int, seed: int) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    (latents,) = tiny.analyse([image], quality)
    stream = tiny.entropy_encode(latents)
    assert same(tiny.entropy_decode(stream), latents)
    (decoded,) = tiny.decode([stream])
    assert decoded.shape == image.shape
    assert decoded.dtype == torch.uint8


@pytest.mark.parametrize(("weights", "best"), [("default", 36), ("fidelity", 39)])
def test_bytes_rise_and_error_falls_over_the_whole_range(weights: str, best: float, images: list[torch.Tensor]) -> None:
    """What networks see costs ``default`` some PSNR, at the best quality too."""
    codec = Codec.load(weights, device="cpu")
    sizes, quality_db = [], []
    for quality in (1, 5, *range(10, 101, 10)):
        streams = codec.encode(images, quality)
        sizes.append(sum(map(len, streams)))
        quality_db.append(sum(psnr(a, b) for a, b in zip(images, codec.decode(streams), strict=True)) / len(images))
    assert sizes == sorted(set(sizes))
    assert quality_db == sorted(set(quality_db))
    assert quality_db[0] > 20
    assert quality_db[-1] > best


def test_smaller_than_jpeg_at_equal_error(codec: Codec, images: list[torch.Tensor]) -> None:
    from io import BytesIO

    from PIL import Image

    jpeg_bytes, jpeg_db = 0, 0.0
    for image in images:
        buffer = BytesIO()
        Image.fromarray(image.numpy().transpose(1, 2, 0)).save(buffer, "JPEG", quality=50, optimize=True)
        jpeg_bytes += len(buffer.getvalue())
        decoded = np.asarray(Image.open(buffer)).transpose(2, 0, 1).copy()
        jpeg_db += psnr(image, torch.from_numpy(decoded)) / len(images)
    for quality in range(20, 100, 2):
        streams = codec.encode(images, quality)
        ours = sum(psnr(a, b) for a, b in zip(images, codec.decode(streams), strict=True)) / len(images)
        if ours >= jpeg_db:
            assert sum(map(len, streams)) < 0.8 * jpeg_bytes
            return
    pytest.fail(f"no quality reaches {jpeg_db:.2f} dB")


def test_mixed_sizes_and_qualities_keep_their_order(codec: Codec, images: list[torch.Tensor]) -> None:
    mixed = [images[0], images[1][:, :33, :47], images[2], images[3][:, :1, :1], images[1][:, :47, :33]]
    qualities = [30, 80, 55, 1, 100]
    streams = codec.encode(mixed, qualities)
    infos = [read_stream_info(stream) for stream in streams]
    assert [(info.height, info.width, info.quality) for info in infos] == [
        (*image.shape[1:], quality) for image, quality in zip(mixed, qualities, strict=True)
    ]
    for image, decoded in zip(mixed, codec.decode(streams), strict=True):
        assert decoded.shape == image.shape
    alone = codec.encode([mixed[1]], 80)[0]
    assert abs(len(alone) - len(streams[1])) <= 8
    assert codec.encode([], 50) == []
    assert codec.decode([]) == []


def test_flat_and_extreme_images(codec: Codec) -> None:
    for value in (0, 1, 127, 254, 255):
        flat = torch.full((3, 64, 80), value, dtype=torch.uint8)
        (stream,) = codec.encode([flat], 75)
        assert len(stream) < 120
        assert (codec.decode([stream])[0].int() - value).abs().max() <= 6
    checker = ((torch.arange(48)[:, None] + torch.arange(48)) % 2 * 255).to(torch.uint8).expand(3, 48, 48)
    assert codec.decode(codec.encode([checker], 100))[0].shape == (3, 48, 48)


def test_numpy_and_strided_images_are_taken(codec: Codec, images: list[torch.Tensor]) -> None:
    image = images[0]
    turned = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)).transpose(2, 0, 1)
    assert codec.encode([turned], 50) == codec.encode([image], 50)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10, 3), np.uint8),
        np.zeros((3, 10, 10), np.float32),
        np.zeros((1, 10, 10), np.uint8),
        np.zeros((3, 0, 10), np.uint8),
        torch.zeros(3, 10, 10),
        torch.zeros(10, 10, dtype=torch.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(tiny: Codec, image: torch.Tensor) -> None:
    with pytest.raises(ImageError):
        tiny.encode([image], 50)


def test_wrong_options_are_refused(tiny: Codec) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for quality in (0, 101, [50, 50]):
        with pytest.raises(ConfigError):
            tiny.encode([image], quality)
    for options in ({"device": "cuda:99"}, {"device": "teapot"}, {"precision": "float8"}, {"threads": 0}):
        with pytest.raises(ConfigError):
            Codec.load(**options)


def test_a_stream_of_other_weights_is_refused(codec: Codec, tiny: Codec, images: list[torch.Tensor]) -> None:
    with pytest.raises(WeightsMismatchError, match=codec.fingerprint):
        tiny.decode(codec.encode(images[:1], 50))


def test_damage_behind_a_valid_checksum_is_refused_or_other_content(tiny: Codec, images: list[torch.Tensor]) -> None:
    """A forged checksum hides a change only where a symbol became another of equal frequency: valid, other content."""
    (latents,) = tiny.analyse(images[:1], 50)
    info, words = parse_stream(tiny.entropy_encode(latents))
    refused = tried = 0
    for position in range(0, len(words), max(1, len(words) // 50)):
        altered = words.copy()
        altered[position] ^= 0x0400
        forged = pack_stream(
            altered,
            fingerprint=info.fingerprint,
            height=info.height,
            width=info.width,
            quality=info.quality,
            lanes=info.lanes,
        )
        tried += 1
        try:
            assert not same(tiny.entropy_decode(forged), latents)
        except StreamCorruptError:
            refused += 1
    assert refused > 0.8 * tried


@pytest.mark.parametrize("name", CASES)
def test_golden_streams_decode_to_the_recorded_latents(tiny: Codec, name: str) -> None:
    latents = tiny.entropy_decode((GOLDEN / f"{name}.dci").read_bytes())
    assert (latents.height, latents.width, latents.quality) == CASES[name]
    assert digest(latents) == DIGESTS[name]
    assert tiny.entropy_encode(latents) == (GOLDEN / f"{name}.dci").read_bytes()
    assert tiny.synthesise([latents])[0].shape == (3, *CASES[name][:2])


def test_another_process_with_other_thread_counts_decodes_the_same() -> None:
    program = (
        "import sys, json, torch\n"
        "from pathlib import Path\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from discernible import Codec\n"
        "import hashlib\n"
        "golden = Path(sys.argv[1])\n"
        "codec = Codec.load(golden / 'tiny.safetensors', device='cpu', threads=int(sys.argv[2]))\n"
        "streams = sorted(golden.glob('*.dci'))\n"
        "with ThreadPoolExecutor(int(sys.argv[2])) as pool:\n"
        "    latents = list(pool.map(lambda path: codec.entropy_decode(path.read_bytes()), streams))\n"
        "print(json.dumps({path.stem: hashlib.sha256(item.symbols.astype('<i2').tobytes()\n"
        "      + item.classes.tobytes()).hexdigest() for path, item in zip(streams, latents)}))\n"
    )
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(GOLDEN), threads], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == DIGESTS


def test_entropy_stages_are_safe_in_threads(codec: Codec, images: list[torch.Tensor]) -> None:
    latents = codec.analyse(images, 60)
    expected = [codec.entropy_encode(item) for item in latents]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(codec.entropy_encode, latents)) == expected
            assert all(map(same, pool.map(codec.entropy_decode, expected), latents))


def test_quantisation_is_a_stage_of_its_own(codec: Codec, images: list[torch.Tensor]) -> None:
    """Any thread, any order, whatever shared the batch: each image keeps its own values, quality and class means."""
    mixed = [images[0], images[1][:, :33, :47], images[2], images[3][:, :1, :1], images[1][:, :47, :33]]
    qualities = [30, 80, 55, 1, 100]
    expected = codec.analyse(mixed, qualities)
    transformed = codec.transform(mixed, qualities)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(same, pool.map(codec.quantise, transformed), expected))
        assert all(map(same, pool.map(codec.quantise, transformed[::-1]), expected[::-1]))
    means = codec.weights.class_means.numpy()
    for image, quality, stage, latents in zip(mixed, qualities, transformed, expected, strict=True):
        assert (stage.height, stage.width, stage.quality) == (*image.shape[1:], quality)
        assert (stage.values.dtype, stage.candidates.dtype) == (np.float32, np.uint8)
        assert (stage.candidates == latents.classes[:, None]).any(1).all()
        colours, others = np.split(latents.symbols, [PREDICTED], axis=1)
        assert np.array_equal(colours, np.rint(stage.values[:, :PREDICTED]))
        left = stage.values[:, PREDICTED:] - means[latents.classes, PREDICTED:] * gain(quality)
        assert np.abs(left - others)[others != 0].max(initial=0) < 1.001
        (alone,) = codec.transform([image], quality)
        assert np.allclose(alone.values, stage.values, rtol=1e-2, atol=0.5)


def test_precisions_agree_to_a_rounding(codec: Codec, images: list[torch.Tensor]) -> None:
    exact = Codec.load(device="cpu", precision="float32")
    brief = Codec.load(device="cpu", precision="bfloat16")
    streams = exact.encode(images, 60)
    for a, b in zip(exact.decode(streams), brief.decode(streams), strict=True):
        assert psnr(a, b) > 42


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_streams_are_interchangeable(codec: Codec, images: list[torch.Tensor]) -> None:
    device = Codec.load(device="cuda")
    for made, read in ((codec, device), (device, codec)):
        streams = made.encode(images, 60)
        for stream in streams:
            assert same(made.entropy_decode(stream), read.entropy_decode(stream))
        for a, b in zip(made.decode(streams), read.decode(streams), strict=True):
            assert psnr(a.cpu(), b.cpu()) > 42


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_comes_from_cuda_is_complete_and_stays(images: list[torch.Tensor]) -> None:
    """It lies in pinned memory, which later batches must not reuse while it is held."""
    device = Codec.load(device="cuda", precision="float32")
    first = device.transform(device.send(images).tensors(), 60)
    for each in first:
        each.received.wait()
    kept = [(each.values.copy(), each.candidates.copy()) for each in first]
    assert torch.from_numpy(first[0].values).is_pinned()
    for quality in (20, 90):
        device.transform(device.send(images).tensors(), quality)
    for each, (values, candidates) in zip(first, kept, strict=True):
        assert np.array_equal(each.values, values)
        assert np.array_equal(each.candidates, candidates)
    on_cpu = Codec.load(device="cpu", precision="float32").transform(images, 60)
    for each, other in zip(first, on_cpu, strict=True):
        assert np.allclose(each.values, other.values, rtol=1e-2, atol=0.5)
    assert all(map(same, map(device.quantise, first), device.analyse(images, 60)))


def test_kodak_is_well_below_jpeg(codec: Codec, data_dir: Path) -> None:
    """A spot check of the claim in the README on one photograph; the benchmark measures all of it."""
    from PIL import Image

    with Image.open(data_dir / "data" / "kodak" / "kodim23.png") as image:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())
    (stream,) = codec.encode([pixels], 50)
    assert len(stream) < 30_000
    assert psnr(pixels, codec.decode([stream])[0]) > 33
