"""Train a small detector on whole images of different sizes, from compressed shards.

    python examples/detection.py                             # on scenes of photographs that installed packages ship
    torchrun --nproc-per-node 2 examples/detection.py        # the same in two processes
    python examples/detection.py TRAIN TEST --classes 80     # folders, patterns or URLs of converted shards

Each sample has a member ``json`` with ``{"boxes": [[left, top, right, bottom], …], "labels": […]}``, in pixels. Without
a crop the loader gives a list of images; here they are padded to the largest of their batch. The detector follows
CenterNet (Zhou et al., Objects as points, 2019): a heat map of object centres for each class, and at each centre the
distances to the sides of the box.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from discernible import CompressedLoader

STRIDE = 8
IMAGES: dict[str, Any] = {
    "labels": "json",
    "as_dict": True,
    "dtype": torch.float32,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def _convolution(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False), nn.GroupNorm(8, after), nn.ReLU()
    )


class Detector(nn.Module):
    """Images (B, 3, h, w) to heat maps (B, classes, h/8, w/8), as logits, and distances (B, 4, h/8, w/8) in pixels."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, width, 2),
            _convolution(width, 2 * width, 2),
            _convolution(2 * width, 4 * width, 2),
        )
        # Dilated, so that a cell sees all of the largest objects.
        self.body = nn.ModuleList([_convolution(4 * width, 4 * width, dilation=dilation) for dilation in (1, 2, 3, 4)])
        self.heat = nn.Conv2d(4 * width, classes, 1)
        self.sides = nn.Conv2d(4 * width, 4, 1)
        # Nearly no cell is a centre; without this the first steps would only learn that.
        nn.init.constant_(self.heat.bias, -4.0)
        nn.init.constant_(self.sides.bias, 3.0)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the heat maps, distances to the left, upper, right and lower side."""
        x = self.stem(images)
        for layer in self.body:
            x = x + layer(x)
        return self.heat(x), self.sides(x).clamp(max=6.5).exp()


def padded(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (3, H, W) of different sizes in one batch, with the mean colour at the right and below."""
    height, width = (
        -(-max(side) // STRIDE) * STRIDE for side in zip(*(image.shape[1:] for image in images), strict=True)
    )
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Where the cells of a feature map are: pixels (height, width, 2) from the left and from above."""
    y, x = (STRIDE * (torch.arange(side, device=device) + 0.5) for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def loss_of(heat: torch.Tensor, sides: torch.Tensor, objects: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Focal loss of the heat maps, and L1 of the logarithms of the distances near the centres."""
    cells = centres(*heat.shape[2:], heat.device)
    wanted = torch.zeros_like(heat)
    # Of all sides, so that DistributedDataParallel finds every parameter in use even where there is no box.
    distance_loss = 0 * sides.mean()
    count = 0
    for number, image in enumerate(objects):
        for box, label in zip(image["boxes"], image["labels"], strict=True):
            corners = torch.tensor(box, dtype=torch.float32, device=heat.device)
            middle, size = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
            away = ((cells - middle) / (size / 6).clamp(min=STRIDE / 2)).square().sum(-1)
            wanted[number, label] = wanted[number, label].maximum(torch.exp(-away / 2))
            wanted[number, label].view(-1)[away.argmin()] = 1
            near = away <= 2
            true = torch.cat([cells[near] - corners[:2], corners[2:] - cells[near]], -1).clamp(min=1)
            found = sides[number].permute(1, 2, 0)[near]
            distance_loss = distance_loss + (found.log() - true.log()).abs().mean(-1).sum() / max(1, int(near.sum()))
            count += 1
    probability = heat.sigmoid()
    at_centre = -functional.logsigmoid(heat) * (1 - probability).square()
    elsewhere = -functional.logsigmoid(-heat) * probability.square() * (1 - wanted).pow(4)
    heat_loss = torch.where(wanted == 1, at_centre, elsewhere).sum()
    return (heat_loss + 2 * distance_loss) / max(1, count)


def boxes_of(heat: torch.Tensor, sides: torch.Tensor, most: int = 20) -> list[torch.Tensor]:
    """For each image rows of class, score, left, top, right and bottom: the highest peaks of the heat maps."""
    cells = centres(*heat.shape[2:], heat.device)
    boxes = torch.cat([cells - sides[:, :2].permute(0, 2, 3, 1), cells + sides[:, 2:].permute(0, 2, 3, 1)], -1)
    scores = heat.sigmoid() * (heat == functional.max_pool2d(heat, 3, 1, 1))
    found = []
    for score, box in zip(scores.flatten(1), boxes.flatten(1, 2), strict=True):
        best, place = score.topk(min(most, score.numel()))
        label, cell = place // box.shape[0], place % box.shape[0]
        found.append(torch.cat([label[:, None].float(), best[:, None], box[cell]], 1))
    return found


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (N, 4) and (M, 4), as (N, M)."""
    inner = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    common = inner.prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def judged(found: torch.Tensor, image: dict[str, Any]) -> torch.Tensor:
    """For each found box a row of class, score, and 1 where it is the best of an object that it overlaps by half."""
    rows = torch.zeros(len(found), 3, device=found.device)
    rows[:, :2] = found[:, :2]
    truth = torch.tensor(image["boxes"], dtype=torch.float32, device=found.device).view(-1, 4)
    labels = _labels(image, found.device)
    free = torch.ones(len(truth), dtype=torch.bool, device=found.device)
    overlaps = overlap(found[:, 2:], truth)
    for row in found[:, 1].argsort(descending=True).tolist():
        candidates = overlaps[row] * (free & (labels == found[row, 0]))
        if len(truth) and candidates.max() >= 0.5:
            rows[row, 2] = 1
            free[candidates.argmax()] = False
    return rows


def _labels(image: dict[str, Any], device: torch.device) -> torch.Tensor:
    return torch.tensor(image["labels"], dtype=torch.int64, device=device)


def average_precision(rows: torch.Tensor, count: int) -> float:
    """Area under the curve of precision over recall; ``rows`` are those of one class, of ``count`` objects."""
    hits = rows[rows[:, 1].argsort(descending=True), 2].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=rows.device)
    # The precision at a recall is the best at that recall or a higher one.
    best = precision.flip(0).cummax(0).values.flip(0)
    steps = hits.diff(prepend=hits.new_zeros(1)) / count
    return float((best * steps).sum())


def from_all_ranks(rows: torch.Tensor) -> torch.Tensor:
    """The rows (N, 3) of all ranks, whose numbers of rows differ."""
    if not distributed.is_initialized():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    parts = [rows.new_zeros(most, 3) for _ in counts]
    distributed.all_gather(parts, functional.pad(rows, (0, 0, 0, most - len(rows))))
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


@torch.inference_mode()
def mean_average_precision(net: nn.Module, loader: CompressedLoader, classes: int) -> float:
    """mAP at an overlap of 0.5, over all ranks: the mean over the classes of which there are objects."""
    net.eval()
    rows = [torch.zeros(0, 3, device=loader.device)]
    counts = torch.zeros(classes, dtype=torch.int64, device=loader.device)
    for batch in loader:
        for found, image in zip(boxes_of(*net(padded(batch["images"]))), batch["json"], strict=True):
            rows.append(judged(found, image))
            counts += torch.bincount(_labels(image, counts.device), minlength=classes)
    if distributed.is_initialized():
        distributed.all_reduce(counts)
    everything = from_all_ranks(torch.cat(rows))
    values = [
        average_precision(everything[everything[:, 0] == label], count)
        for label, count in enumerate(counts.tolist())
        if count
    ]
    return sum(values) / len(values)


def start_process() -> tuple[int, torch.device]:
    """Rank and device of this process; under torchrun it joins the others, and loaders then find their rank."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        return 0, device
    distributed.init_process_group("nccl" if cuda else "gloo")
    return distributed.get_rank(), device


def run(options: argparse.Namespace) -> None:
    """Train, evaluate now and then, and say how it goes."""
    rank, device = start_process()
    if not options.train:
        from sample_data import sample_shards

        if rank == 0:
            sample_shards(options.out, "scenes-train")
        if distributed.is_initialized():
            distributed.barrier()
        options.train, options.test = (sample_shards(options.out, f"scenes-{part}") for part in ("train", "test"))

    torch.manual_seed(options.seed)
    net = Detector(options.classes).to(device)
    wrapped = nn.parallel.DistributedDataParallel(net) if distributed.is_initialized() else net
    optimizer = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=1e-4)
    shared = {"batch_size": options.batch_size, "workers": options.workers, "device": device, **IMAGES}
    with (
        CompressedLoader(options.train, shuffle=True, seed=options.seed, **shared) as training,
        CompressedLoader(options.test, pad=False, **shared) as testing,
    ):
        steps = options.epochs * len(training)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        for epoch in range(options.epochs):
            net.train()
            losses = []
            for batch in training:
                loss = loss_of(*wrapped(padded(batch["images"])), batch["json"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            precision = mean_average_precision(net, testing, options.classes)
            if rank == 0:
                mean = sum(losses) / len(losses)
                print(
                    f"epoch {epoch + 1}: {len(losses)} steps, loss {mean:.3f}; test: mAP@0.5 {precision:.3f}",
                    flush=True,
                )
    if distributed.is_initialized():
        # All leave together. Gloo's threads let go of the last sums only after they gave the results, and may abort a
        # process that is ending by then.
        distributed.barrier()
        distributed.destroy_process_group()


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", help="converted shards with boxes and labels in the member json")
    parser.add_argument("test", nargs="?", help="shards for testing")
    parser.add_argument("--classes", type=int, help="number of classes, with TRAIN and TEST")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="images a step and process")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--workers", type=int, default=1, help="of each loader: they read and entropy-decode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="where the sample data is")
    options = parser.parse_args()
    if bool(options.train) != bool(options.test and options.classes):
        parser.error("TRAIN, TEST and --classes belong together")
    if not options.train:
        from sample_data import OBJECTS

        options.classes = len(OBJECTS)
    run(options)


if __name__ == "__main__":
    main()
