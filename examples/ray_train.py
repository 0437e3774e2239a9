"""Train a small classifier with Ray Train on compressed shards: Ray Data reads and decodes, TorchTrainer trains.

    pip install "discernible[demo]" "ray[data,train]"
    python examples/ray_train.py                          # on photographs that installed packages ship
    python examples/ray_train.py shards/ --classes 1000 --size 160 --workers 4 --gpu

SHARDS is what ``discernible compress`` made of tars with an image and a ``cls`` member (an integer) in each sample. A
tenth of the samples is kept for testing. Without SHARDS, crops of photographs are converted first, and the network
learns to say which photograph a crop is from.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import torch
from PIL import Image
from ray.train.torch import TorchTrainer, prepare_model
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from discernible import DecodeBatch
from discernible.jobs.pages.sample_photos import sample_photos


def make_shards(folder: Path, *, shards: int = 4, crops: int = 96, side: int = 96) -> tuple[Path, int]:
    """Tars of crops of photographs, converted by the command line; returns their folder and the number of classes."""
    photos = sample_photos(6)
    chance = random.Random(0)
    (folder / "source").mkdir()
    for shard in range(shards):
        with tarfile.open(folder / "source" / f"{shard:05d}.tar", "w") as tar:
            for number in range(crops):
                label = number % len(photos)
                with Image.open(photos[label].path) as photo:
                    left, top = (chance.randrange(length - side) for length in photo.size)
                    crop = photo.convert("RGB").crop((left, top, left + side, top + side))
                sink = io.BytesIO()
                crop.save(sink, "PNG")
                for extension, data in (("png", sink.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard}-{number:04d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    command = [sys.executable, "-m", "discernible.jobs", "compress", str(folder / "source"), str(folder / "shards")]
    subprocess.run(command, check=True)
    return folder / "shards", len(photos)


def read_shards(shards: str, options: argparse.Namespace, *, test: bool) -> ray.data.Dataset:
    """Batches of images and labels, for training or for testing; decoding starts when somebody iterates."""

    def kept(batch: dict[str, Any]) -> dict[str, Any]:
        chosen = [(zlib.crc32(key.encode()) % 10 == 0) == test for key in batch["__key__"]]
        return {name: batch[name][chosen] for name in ("__key__", "__url__", "dci", "cls")}

    streams = ray.data.read_webdataset(shards, file_extensions=["tar"], suffixes=["dci", "cls"])
    # Tasks, because their processes stay between epochs, and with them the codec. On GPUs actors would decode instead:
    # map_batches(DecodeBatch, fn_constructor_kwargs={"size": …}, compute=ray.data.ActorPoolStrategy(…), num_gpus=1).
    images = streams.map_batches(kept).map_batches(
        DecodeBatch(size=options.size),
        compute=ray.data.TaskPoolStrategy(size=options.decoders),
        batch_size=options.batch_size,
    )
    return images.select_columns(["image", "cls"])


class Net(nn.Module):
    """Four convolutions and a mean."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after in (width, width, 2 * width, 2 * width):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
            before = after
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, h, w) to logits (B, classes)."""
        features: torch.Tensor = self.features(images.float().div(127.5).sub(1))
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


def train(config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs, on its part of the data."""
    net = prepare_model(Net(config["classes"]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(config["epochs"]):
        net.train()
        seen, loss_sum = 0, 0.0
        batches = ray.train.get_dataset_shard("train").iter_torch_batches(
            batch_size=config["batch_size"], local_shuffle_buffer_size=8 * config["batch_size"], drop_last=True
        )
        for batch in batches:
            loss = functional.cross_entropy(net(batch["image"]), batch["cls"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(batch["cls"])
            loss_sum += len(batch["cls"]) * loss.item()
        net.eval()
        right, tested = 0, 0
        with torch.inference_mode():
            for batch in ray.train.get_dataset_shard("test").iter_torch_batches(batch_size=config["batch_size"]):
                right += int((net(batch["image"]).argmax(1) == batch["cls"]).sum())
                tested += len(batch["cls"])
        # Every worker reports on its own part; Ray keeps what the first one says, and its checkpoint.
        metrics = {"epoch": epoch, "images": seen, "loss": loss_sum / max(1, seen), "accuracy": right / max(1, tested)}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                save_file(getattr(net, "module", net).state_dict(), Path(folder) / "net.safetensors")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)


def main() -> None:
    """Parse the options, convert if asked to, train, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", help="folder of converted shards; without it some are made")
    parser.add_argument("--classes", type=int, help="number of classes, with SHARDS")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1, help="processes that train")
    parser.add_argument("--decoders", type=int, default=1, help="most processes that decode")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="side of the images, in pixels")
    parser.add_argument("--out", type=Path, default=Path("out/ray_train"), help="folder for the trained networks")
    parser.add_argument("--address", default="local", help="of a Ray cluster; by default one is started here")
    parser.add_argument("--gpu", action="store_true", help="train on GPUs, one a worker")
    options = parser.parse_args()
    if options.shards and not options.classes:
        parser.error("SHARDS needs --classes")
    with tempfile.TemporaryDirectory() as scratch:
        shards, classes = options.shards, options.classes
        if shards is None:
            folder, classes = make_shards(Path(scratch))
            shards = str(folder)
        elif "://" not in shards:
            # Ray's processes have working directories of their own.
            shards = str(Path(shards).absolute())
        if options.address == "local":
            # One for every process that reads, decodes or trains: with fewer, they wait for each other for ever.
            needed = options.workers + 2 * options.decoders + 2
            ray.init("local", num_cpus=max(needed, os.cpu_count() or 1), include_dashboard=False)
        else:
            ray.init(options.address)
        ray.data.DataContext.get_current().enable_progress_bars = False
        trainer = TorchTrainer(
            train,
            train_loop_config={"classes": classes, "epochs": options.epochs, "batch_size": options.batch_size},
            datasets={name: read_shards(shards, options, test=name == "test") for name in ("train", "test")},
            scaling_config=ray.train.ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
            run_config=ray.train.RunConfig(storage_path=str(options.out.absolute())),
        )
        result = trainer.fit()
    print("  ".join(f"{name} {value:.4g}" for name, value in (result.metrics or {}).items()))
    print(result.checkpoint.path if result.checkpoint else "no checkpoint")


if __name__ == "__main__":
    main()
