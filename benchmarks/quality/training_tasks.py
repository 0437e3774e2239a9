"""Two ways to train a classifier that one CPU core can afford, on any set of the same photographs.

``scratch``: a residual network of 0.3 M parameters from random weights, on random views of 112 pixels.

``tune``: a pretrained EfficientNet-Lite. Its last three blocks, its last convolution and a new linear layer are
trained, with batch statistics; what comes before stays as it is, so its output is computed once for a few views of each
image (a random part, every other one mirrored) and kept as float16. That is fine-tuning of the last stages on a handful
of views, more than a linear probe and less than fine-tuning of everything with new views every epoch.

Whole pictures are first stretched to a square of ``working`` pixels (Lanczos). At native sizes about three times that,
much of what coding changed is averaged away, as in any training that reduces its images; training at full
resolution may lose more than is seen here.

A seed decides initial weights, order and views; they do not depend on the set, so differences between sets are paired.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.peers import Pixels
from discernible.codec.perception import load_features

#: Share of the area, aspect ratio, place from left and top, mirrored or not: uniform in 0…1 before they are used.
DRAWS = 5
_AREA = (0.4, 1.0)
_RATIO = (3 / 4, 4 / 3)
_SMOOTHING = 0.1
_EVALUATED = 64
_TUNED_BLOCKS = 3
_VIEWS_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast: AdamW, one cycle of the rate up to ``rate``, batches of ``batch``."""

    epochs: int
    rate: float
    batch: int
    weight_decay: float = 0.02


def views(pictures_BSS3: NDArray[np.uint8], draws_B5: NDArray[np.float64], side: int) -> Tensor:
    """A random part of each picture, scaled bilinearly: float (B, 3, side, side), 0…255."""
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * draws_B5[:, 0]
    ratio = np.exp(np.log(_RATIO[0]) + np.log(_RATIO[1] / _RATIO[0]) * draws_B5[:, 1])
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    theta = np.zeros((len(draws_B5), 2, 3), np.float32)
    theta[:, 0, 0] = np.where(draws_B5[:, 4] < 0.5, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * draws_B5[:, 2] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * draws_B5[:, 3] - 1) * (1 - height)
    return _sample(pictures_BSS3, torch.from_numpy(theta), side)


def whole_views(pictures_BSS3: NDArray[np.uint8], side: int, *, mirrored: bool) -> Tensor:
    """The whole of each picture, as ``views`` gives it."""
    theta = torch.tensor([[-1.0 if mirrored else 1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return _sample(pictures_BSS3, theta.expand(len(pictures_BSS3), 2, 3), side)


def _sample(pictures_BSS3: NDArray[np.uint8], theta_B23: Tensor, side: int) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures_BSS3.transpose(0, 3, 1, 2))).float()
    grid = F.affine_grid(theta_B23, [len(pixels), 3, side, side], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


class Task(ABC):
    """What the two have in common. A set becomes one array, (views, pictures, …), in a file; trainings read that."""

    name: str
    title: str

    def __init__(self, recipe: Recipe, *, working: int, side: int) -> None:
        self.recipe, self.working, self.side = recipe, working, side

    def identity(self) -> dict[str, Any]:
        """What a result depends on beside set and seed."""
        return {"task": self.name, "working": self.working, "side": self.side, **asdict(self.recipe)}

    @abstractmethod
    def file_name(self) -> str:
        """Of the array of a training set; that of the test images has ``test-`` before it."""

    @abstractmethod
    def array(self, pictures_BSS3: NDArray[np.uint8], numbers: Sequence[int], *, test: bool) -> NDArray[Any]:
        """What is kept of pictures of the working size, (views, B, …)."""

    @abstractmethod
    def network(self, classes: int) -> nn.Module:
        """What is trained, from what ``batch`` gives to logits; its random weights follow PyTorch's generator."""

    @abstractmethod
    def batch(self, kept: NDArray[Any], chosen: NDArray[np.int64], random: np.random.Generator) -> Tensor:
        """Inputs of a training step."""

    @abstractmethod
    def tested(self, kept: NDArray[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """All test images in order, and the same mirrored, in batches."""


class Scratch(Task):
    """A small network from random weights."""

    name = "scratch"
    title = "Small residual network, trained from scratch"

    def __init__(self, recipe: Recipe, *, width: int = 16) -> None:
        super().__init__(recipe, working=144, side=112)
        self._width = width

    def identity(self) -> dict[str, Any]:
        """With the width."""
        return {**super().identity(), "width": self._width}

    def file_name(self) -> str:
        """Whole pictures: views are drawn anew in every epoch."""
        return f"scratch-{self.working}.npy"

    def array(self, pictures_BSS3: NDArray[np.uint8], numbers: Sequence[int], *, test: bool) -> NDArray[Any]:
        """The pixels."""
        return pictures_BSS3[None]

    def network(self, classes: int) -> nn.Module:
        """Logits of (B, 3, 112, 112)."""
        return residual_network(classes, self._width)

    def batch(self, kept: NDArray[Any], chosen: NDArray[np.int64], random: np.random.Generator) -> Tensor:
        """New views."""
        return _scaled(views(kept[0, chosen], random.random((len(chosen), DRAWS)), self.side))

    def tested(self, kept: NDArray[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole pictures."""
        for begin in range(0, kept.shape[1], _EVALUATED):
            pictures = kept[0, begin : begin + _EVALUATED]
            plain, mirrored = (_scaled(whole_views(pictures, self.side, mirrored=flag)) for flag in (False, True))
            yield plain, mirrored


class Tune(Task):
    """The last stages of a pretrained network; ``views`` views of each image are made once."""

    name = "tune"

    def __init__(self, recipe: Recipe, *, network: str, views: int) -> None:
        super().__init__(recipe, working=192, side=160)
        self.title = f"{network}, last {_TUNED_BLOCKS} blocks and head fine-tuned"
        self._name, self._views = network, views
        *early, last, head = load_features(network).stages
        blocks = list(last.children())
        self._frozen = nn.Sequential(*early, *blocks[:-_TUNED_BLOCKS])
        self._tuned = nn.Sequential(*blocks[-_TUNED_BLOCKS:], head)

    def identity(self) -> dict[str, Any]:
        """With the network and the number of views."""
        return {**super().identity(), "network": self._name, "views": self._views}

    def file_name(self) -> str:
        """Features of the frozen part."""
        return f"{self._name}-{self.working}-{self.side}-{self._views}.npy"

    @torch.inference_mode()
    def array(self, pictures_BSS3: NDArray[np.uint8], numbers: Sequence[int], *, test: bool) -> NDArray[Any]:
        """Features of the views, float16; of the whole pictures and their mirror images for testing."""
        if test:
            seen = [whole_views(pictures_BSS3, self.side, mirrored=flag) for flag in (False, True)]
        else:
            # Each view of an image is the same in every set, whatever order its pictures come in.
            draws = np.stack([np.random.default_rng((_VIEWS_SEED, n)).random((self._views, DRAWS)) for n in numbers])
            draws[:, :, 4] = np.arange(self._views) % 2
            seen = [views(pictures_BSS3, draws[:, view], self.side) for view in range(self._views)]
        return np.stack([self._frozen(_as_pretrained(x)).half().numpy() for x in seen])

    def network(self, classes: int) -> nn.Module:
        """Logits of what the frozen part gives."""
        tuned = copy.deepcopy(self._tuned).requires_grad_(True)
        channels = next(m.num_features for m in reversed(list(tuned.modules())) if isinstance(m, nn.BatchNorm2d))
        return nn.Sequential(tuned, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def batch(self, kept: NDArray[Any], chosen: NDArray[np.int64], random: np.random.Generator) -> Tensor:
        """One of the views of each."""
        return _channels_last(torch.from_numpy(kept[random.integers(0, len(kept), len(chosen)), chosen]).float())

    def tested(self, kept: NDArray[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of both."""
        for begin in range(0, kept.shape[1], _EVALUATED):
            part = torch.from_numpy(np.ascontiguousarray(kept[:, begin : begin + _EVALUATED])).float()
            yield _channels_last(part[0]), _channels_last(part[1])


class _Block(nn.Module):
    """Two convolutions, the first of stride 2, and a way around them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, 2, 1, bias=False),
            nn.GroupNorm(8, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.GroupNorm(8, after),
        )
        # Not a strided convolution, which drops three places of four; with eight channels it crashes PyTorch 2.13, too.
        self.around = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of half the resolution."""
        return torch.relu(self.inner(x) + self.around(x))


def residual_network(classes: int, width: int) -> nn.Module:
    """(B, 3, h, w) to logits; 304,000 parameters for 10 classes and a width of 16."""
    stem = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    blocks = [_Block(width << level, width << level + 1) for level in range(3)]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _scaled(x: Tensor) -> Tensor:
    return _channels_last(x / 64 - 2)


def _as_pretrained(x: Tensor) -> Tensor:
    return _channels_last((x - 127) / 128)


def prepare(
    tasks: Sequence[Task], folder: Path, pictures: Iterable[tuple[int, Pixels]], count: int, *, test: bool = False
) -> None:
    """Write the array of each task into ``folder``, in one pass over ``count`` pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[Task, Any] = {}
    paths = {task: array_path(task, folder, test=test) for task in tasks}
    seen = 0
    remaining = iter(pictures)
    while chunk := list(islice(remaining, _EVALUATED)):
        numbers = [number for number, _ in chunk]
        for task in tasks:
            kept = task.array(_reduced([picture for _, picture in chunk], task.working), numbers, test=test)
            if task not in arrays:
                shape = (len(kept), count, *kept.shape[2:])
                unfinished = paths[task].with_suffix(".unfinished")
                arrays[task] = np.lib.format.open_memmap(unfinished, "w+", kept.dtype, shape)
            arrays[task][:, numbers] = kept
        seen += len(chunk)
    if seen != count:
        raise RuntimeError(f"{folder} got {seen} pictures, not {count}")
    for task, array in arrays.items():
        array.flush()
        paths[task].with_suffix(".unfinished").replace(paths[task])


def array_path(task: Task, folder: Path, *, test: bool = False) -> Path:
    """Where ``prepare`` writes."""
    return folder / (f"test-{task.file_name()}" if test else task.file_name())


def _reduced(pictures: Sequence[Pixels], side: int) -> NDArray[np.uint8]:
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)) for picture in pictures]
    )


def steps(task: Task, count: int) -> int:
    """How many a training on so many images takes."""
    return task.recipe.epochs * max(1, count // task.recipe.batch)


def train(task: Task, kept: NDArray[Any], labels: NDArray[np.int64], classes: int, seed: int) -> nn.Module:
    """A network, trained on the images of ``kept``; equal arrays give equal networks on one machine."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    recipe = task.recipe
    net = task.network(classes).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps(task, len(labels)))
    size = min(recipe.batch, len(labels))
    for _ in range(recipe.epochs):
        order = random.permutation(len(labels))
        for begin in range(0, len(labels) - size + 1, size):
            chosen = order[begin : begin + size]
            logits = net(task.batch(kept, chosen, random))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]), label_smoothing=_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.inference_mode()
def named_right(task: Task, net: nn.Module, kept: NDArray[Any], labels: NDArray[np.int64]) -> list[int]:
    """1 for each test image whose class has the highest probability, averaged with its mirror image; else 0."""
    guessed = [
        (net(plain).softmax(1) + net(mirrored).softmax(1)).argmax(1).numpy() for plain, mirrored in task.tested(kept)
    ]
    return [int(right) for right in np.concatenate(guessed) == labels]
