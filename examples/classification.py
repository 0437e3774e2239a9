"""Train a small ResNet on compressed shards, with checkpoints that go on in the middle of an epoch.

    python examples/classification.py                                  # on photographs that installed packages ship
    torchrun --nproc-per-node 2 examples/classification.py             # the same in two processes
    python examples/classification.py TRAIN TEST --classes 1000        # folders, patterns or URLs of converted shards

With ``--checkpoint FILE`` it saves now and then, and when started again goes on behind the last batch that FILE knows
of, also with another number of processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from discernible import CenterCrop, CompressedLoader, RandomResizedCrop

SIZE = (64, 64)
IMAGES: dict[str, Any] = {
    "labels": "cls",
    "dtype": torch.float32,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


class Block(nn.Module):
    """Two convolutions and a way around them; the first halves the resolution where ``stride`` is 2."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.GroupNorm(8, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.GroupNorm(8, after),
        )
        # Every block begins as its way around, which makes training less of a gamble.
        nn.init.zeros_(self.inner[-1].weight)
        same = before == after and stride == 1
        self.around: nn.Module = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features to features."""
        return torch.relu(self.inner(x) + self.around(x))


class ResNet(nn.Module):
    """Images (B, 3, h, w) to logits (B, classes); 174,000 parameters for 10 classes."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.layers(images)
        return logits


def train_loader(shards: str, *, batch_size: int, workers: int, seed: int, device: torch.device) -> CompressedLoader:
    """Random crops of shuffled samples."""
    crop = RandomResizedCrop(size=SIZE, scale=(0.25, 1.0))
    return CompressedLoader(
        shards, batch_size=batch_size, crop=crop, shuffle=True, seed=seed, workers=workers, device=device, **IMAGES
    )


def test_loader(shards: str, *, batch_size: int, workers: int, device: torch.device) -> CompressedLoader:
    """Whole tiles in order. Without ``pad`` no sample counts twice where the ranks cannot share equally."""
    return CompressedLoader(
        shards, batch_size=batch_size, crop=CenterCrop(size=SIZE), pad=False, workers=workers, device=device, **IMAGES
    )


def train_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, loader: CompressedLoader, epochs: int
) -> Iterator[float]:
    """Train on what is left of an epoch, one of ``epochs``; gives the loss of each batch, after its step."""
    net.train()
    peak = optimizer.defaults["lr"]
    for images, labels in loader:
        # The share of the whole training that is done, whatever number of processes did it.
        state = loader.state_dict()
        done = (state["epoch"] + state["used"] / state["samples"]) / epochs
        optimizer.param_groups[0]["lr"] = peak * min(20 * done, 0.5 + 0.5 * math.cos(math.pi * done))
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.inference_mode()
def evaluate(net: nn.Module, loader: CompressedLoader) -> tuple[int, int, float]:
    """Samples, how many of them are classified rightly, and the mean loss, over all ranks."""
    net.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=loader.device)
    for images, labels in loader:
        logits = net(images)
        loss = cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([torch.tensor(len(labels), device=loss.device), (logits.argmax(1) == labels).sum(), loss])
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    count, right, loss_sum = sums.tolist()
    return int(count), int(right), loss_sum / count


def save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, loader: CompressedLoader) -> None:
    """Network, momentum and the loader's place in one file, which is replaced as a whole."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    unfinished = path.with_name(f"{path.name}.unfinished")
    save_file(tensors, unfinished, metadata={"loader": json.dumps(loader.state_dict())})
    unfinished.replace(path)


def restore(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, loader: CompressedLoader) -> dict[str, Any]:
    """Go on where :func:`save` was called; gives the loader's state."""
    with safe_open(path, "pt") as file:
        net.load_state_dict({name: file.get_tensor(f"net.{name}") for name in net.state_dict()})
        for name, parameter in net.named_parameters():
            momentum = file.get_tensor(f"momentum.{name}").to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum
        state: dict[str, Any] = json.loads(file.metadata()["loader"])
    loader.load_state_dict(state)
    return state


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
    """Train, evaluate after every epoch, and say how it goes."""
    rank, device = start_process()
    if not options.train:
        from sample_data import sample_shards

        if rank == 0:
            sample_shards(options.out, "tiles-train")
        if distributed.is_initialized():
            distributed.barrier()
        options.train, options.test = (sample_shards(options.out, f"tiles-{part}") for part in ("train", "test"))

    torch.manual_seed(options.seed)
    net = ResNet(options.classes).to(device)
    optimizer = torch.optim.SGD(net.parameters(), options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    shared = {"batch_size": options.batch_size, "workers": options.workers, "device": device}
    with (
        train_loader(options.train, seed=options.seed, **shared) as training,
        test_loader(options.test, **shared) as testing,
    ):
        first = 0
        if options.checkpoint and options.checkpoint.exists():
            state = restore(options.checkpoint, net, optimizer, training)
            first = state["epoch"]
            if rank == 0:
                print(f"goes on in epoch {first + 1} behind image {state['used']} of {state['samples']}", flush=True)
        wrapped = nn.parallel.DistributedDataParallel(net) if distributed.is_initialized() else net
        step = 0
        for epoch in range(first, options.epochs):
            losses = []
            for loss in train_epoch(wrapped, optimizer, training, options.epochs):
                losses.append(loss)
                step += 1
                if options.checkpoint and rank == 0 and step % options.save_every == 0:
                    save(options.checkpoint, net, optimizer, training)
            count, right, test_loss = evaluate(net, testing)
            if rank == 0:
                mean = sum(losses) / len(losses)
                print(
                    f"epoch {epoch + 1}: {len(losses)} steps, loss {mean:.3f}; "
                    f"test: loss {test_loss:.3f}, {right} of {count} right ({right / count:.1%})",
                    flush=True,
                )
        if options.checkpoint and rank == 0:
            save(options.checkpoint, net, optimizer, training)
    if distributed.is_initialized():
        # All leave together. Gloo's threads let go of the last sums only after they gave the results, and may abort a
        # process that is ending by then.
        distributed.barrier()
        distributed.destroy_process_group()


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", help="converted shards with an integer in the member cls")
    parser.add_argument("test", nargs="?", help="shards for testing")
    parser.add_argument("--classes", type=int, help="number of classes, with TRAIN and TEST")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="images a step and process")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate at its peak")
    parser.add_argument("--workers", type=int, default=1, help="of each loader: they read and entropy-decode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="save here, and go on from here")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="where the sample data is")
    options = parser.parse_args()
    if bool(options.train) != bool(options.test and options.classes):
        parser.error("TRAIN, TEST and --classes belong together")
    if not options.train:
        from sample_data import CLASSES

        options.classes = len(CLASSES)
    run(options)


if __name__ == "__main__":
    main()
