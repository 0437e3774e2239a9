"""What a codec cannot reach at any rate: the error that its transforms leave when nothing is rounded between them.

    python -m benchmarks.quality.floor [FOLDER] --weights default --weights fidelity

The latents are fewer than the samples, and transforms that were trained for low rates, or for what networks see, give
up more. Near this floor more bits buy nothing, and so do higher qualities.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import bundled_photos, markdown_table, read_rgb
from discernible.codec import Codec
from discernible.codec.network.transforms import quality_coordinate

_SIDE = 224


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="default: photographs that installed packages ship")
    parser.add_argument("--weights", action="append", help="name or file; repeatable (default: default)")
    parser.add_argument("--quality", type=int, action="append", help="repeatable (default: 76, 90, 100)")
    parser.add_argument("--limit", type=int, default=24, help="at most so many photographs, spread over the folder")
    options = parser.parse_args()
    suffixes = (".png", ".jpg", ".jpeg")
    paths = bundled_photos()
    if options.folder:
        paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in suffixes)
    count = min(options.limit, len(paths))
    originals = torch.stack([central(paths[i * len(paths) // count]) for i in range(count)])
    rows = []
    for weights in options.weights or ["default"]:
        codec = Codec.load(weights, device="cpu", precision="float32", threads=1)
        for quality in options.quality or [76, 90, 100]:
            t_N = quality_coordinate(torch.full((count,), quality))
            with torch.inference_mode():
                latents = codec.weights.analysis(originals.float(), t_N)
                unrounded = codec.weights.synthesis(latents, t_N).round().clamp(0, 255)
            streams = codec.encode(list(originals), quality)
            decoded = torch.stack(codec.decode(streams)).float()
            errors = [float((each - originals).square().mean()) for each in (unrounded, decoded)]
            decibels = [f"{error:.1f} ({10 * math.log10(255**2 / error):.1f} dB)" for error in errors]
            bpp = 8 * sum(map(len, streams)) / originals[:, 0].numel()
            rows.append([codec.name, str(quality), f"{bpp:.2f}", *decibels])
    print(f"The central {_SIDE}² pixels of {count} photographs; mean squared error\n")
    print(markdown_table(["weights", "quality", "bpp", "nothing rounded", "coded"], rows))


def central(path: Path) -> torch.Tensor:
    """The middle of a photograph, uint8 (3, 224, 224)."""
    pixels = np.asarray(read_rgb(path))
    top, left = ((length - _SIDE) // 2 for length in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + _SIDE, left : left + _SIDE].copy()).permute(2, 0, 1).contiguous()


if __name__ == "__main__":
    main()
