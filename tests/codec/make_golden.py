"""Writes the golden files beside it: ``python tests/codec/make_golden.py``, only when the format version changes.

``golden/tiny.safetensors`` are weights of a very small codec (KLT start, no training); ``golden/*.dci`` are streams
made with it, and ``golden/latents.json`` holds the SHA-256 of the latents that every machine must decode from them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from discernible.codec import Codec, Latents
from discernible.codec.network.prior import PriorConfig
from discernible.codec.network.transforms import TransformConfig
from discernible.codec.training.photos import CropConfig
from discernible.codec.training.train import TrainConfig, train

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "one_pixel": (1, 1, 50),
    "row": (1, 70, 20),
    "odd": (37, 53, 75),
    "two_lanes": (96, 150, 35),
    "four_lanes": (240, 200, 60),
    "best": (64, 64, 100),
    "smallest": (64, 64, 1),
}


def digest(latents: Latents) -> str:
    """SHA-256 of symbols and classes, little-endian."""
    return hashlib.sha256(latents.symbols.astype("<i2").tobytes() + latents.classes.tobytes()).hexdigest()


def main() -> None:
    """Train the tiny weights and write streams and digests."""
    import skimage
    from PIL import Image

    source = Path(skimage.__file__).parent / "data"
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for name in ("astronaut", "chelsea", "coffee"):
            (photos / f"{name}.png").write_bytes((source / f"{name}.png").read_bytes())
        config = TrainConfig(
            output=Path(folder) / "run",
            folders=(photos,),
            name="tiny",
            steps=0,
            start_crops=256,
            fit_crops=128,
            crops=CropConfig(size=64),
            transforms=TransformConfig(channels=16, latents=32, analysis_blocks=1, synthesis_blocks=1),
            prior=PriorConfig(classes=8),
        )
        (GOLDEN / "tiny.safetensors").write_bytes(train(config).read_bytes())
    codec = Codec.load(GOLDEN / "tiny.safetensors", device="cpu", precision="float32")
    photo = np.asarray(Image.open(source / "astronaut.png").convert("RGB")).transpose(2, 0, 1)
    digests = {}
    for name, (height, width, quality) in CASES.items():
        image = torch.from_numpy(photo[:, 100 : 100 + height, 150 : 150 + width].copy())
        (stream,) = codec.encode([image], quality)
        (GOLDEN / f"{name}.dci").write_bytes(stream)
        digests[name] = digest(codec.entropy_decode(stream))
    (GOLDEN / "latents.json").write_text(json.dumps(digests, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
