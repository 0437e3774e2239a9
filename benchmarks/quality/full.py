"""The whole evaluation behind the claims about quality, by the command that users have: ``discernible evaluate``.

    python -m benchmarks.quality.full --out out/quality --markdown docs/quality.md
    python -m benchmarks.quality.full --quick

Looks for ``data/kodak``, ``data/imagenet_val``, ``data/coco_val`` and ``models/`` in the folder that
``DISCERNIBLE_DATA_DIR`` names (default: ``../shared`` beside the checkout), and leaves out what is missing there.
``--quick`` takes a few images of each and two classical codecs. Go on after an interruption by running it again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

QUICK = ("--limit", "6", "--codec", "JPEG 4:2:0", "--codec", "WebP")


def arguments_for(folder: Path) -> list[str]:
    """The options of ``discernible evaluate`` for the data and models in ``folder``."""
    data, models = folder / "data", folder / "models"
    vgg, mobilenet = models / "hed_vgg16_features.safetensors", models / "mobilenet_v2_1.0_224_quant.tflite"
    yolox, deeplab = models / "yolox_nano.onnx", models / "deeplabv3_mnv2_pascal_quant.tflite"
    found: list[str] = []
    if (data / "kodak").is_dir():
        found += ["--photos", str(data / "kodak")]
        found += ["--features", f"vgg16:{vgg}"] if vgg.is_file() else []
    if (data / "imagenet_val").is_dir():
        found += ["--labelled", str(data / "imagenet_val"), "--classifier", "efficientnet-lite2"]
        found += ["--classifier", f"tflite:{mobilenet}"] if mobilenet.is_file() else []
    judges = [
        *(["--detector", str(yolox)] if yolox.is_file() else []),
        *(["--segmenter", str(deeplab)] if deeplab.is_file() else []),
    ]
    if (data / "coco_val").is_dir() and judges:
        found += ["--objects", str(data / "coco_val"), *judges]
    return found


def main() -> None:
    """Put the command together, show it, become it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="report, tables and the rows measured")
    parser.add_argument("--markdown", type=Path, help="write the tables here as Markdown, too")
    parser.add_argument("--weights", action="append", help="name or file; repeatable (default: default)")
    parser.add_argument("--quick", action="store_true", help="a few images, two classical codecs")
    options = parser.parse_args()
    folder = Path(os.environ.get("DISCERNIBLE_DATA_DIR", Path(__file__).resolve().parents[3] / "shared"))
    found = arguments_for(folder)
    if not found:
        sys.exit(f"no evaluation data in {folder}: set DISCERNIBLE_DATA_DIR")
    weights = [part for name in options.weights or ["default"] for part in ("--weights", name)]
    markdown = ["--markdown", str(options.markdown)] if options.markdown else []
    command = ["evaluate", "--out", str(options.out), *weights, *found, *markdown, *(QUICK if options.quick else ())]
    print(shlex.join(["discernible", *command]), file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "discernible.jobs", *command])


if __name__ == "__main__":
    main()
