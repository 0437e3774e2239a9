"""Compressed shards in Lightning (2.2 or later), which saves the loader's place and goes on in the middle of an epoch.

    pip install "discernible[demo]" lightning
    python examples/lightning_data.py                                     # on the tiles of sample_data.py
    python examples/lightning_data.py --resume out/examples/last.ckpt     # goes on where that checkpoint was written

A loader has ``state_dict`` and ``load_state_dict``, and those are what Lightning looks for: its checkpoints hold the
place without a line here. It is no ``DataLoader``, so Lightning leaves order and sharing between ranks to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from classification import IMAGES, SIZE, ResNet
from lightning.pytorch.callbacks import ModelCheckpoint
from sample_data import CLASSES, sample_shards
from torch.nn.functional import cross_entropy

from discernible import CenterCrop, CompressedLoader, RandomResizedCrop


class EpochLoader(CompressedLoader):
    """Begins an epoch with its first batch: Lightning asks for an iterator once before it trains, and drops it."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class CompressedData(lightning.LightningDataModule):
    """Loaders for training and validation."""

    training: CompressedLoader
    validation: CompressedLoader

    def __init__(self, train: str, validation: str, *, batch_size: int = 32, workers: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.places = train, validation
        self.seed = seed
        self.shared = {"batch_size": batch_size, "workers": workers, **IMAGES}

    def setup(self, stage: str) -> None:
        """Make the loaders: here and not before, because by now the process knows its rank and its device."""
        shared = {**self.shared, "device": self.trainer.strategy.root_device}
        crop = RandomResizedCrop(size=SIZE, scale=(0.25, 1.0))
        self.training = EpochLoader(self.places[0], crop=crop, shuffle=True, seed=self.seed, **shared)
        self.validation = CompressedLoader(self.places[1], crop=CenterCrop(size=SIZE), **shared)

    def train_dataloader(self) -> CompressedLoader:
        """Random crops of shuffled samples."""
        return self.training

    def val_dataloader(self) -> CompressedLoader:
        """Whole tiles in order; some come twice where ranks cannot share equally, as with Lightning's own sampler."""
        return self.validation

    def teardown(self, stage: str) -> None:
        """End the loaders' workers."""
        self.training.close()
        self.validation.close()


class Classifier(lightning.LightningModule):
    """The network of classification.py."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = ResNet(classes)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        """The loss of a batch."""
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> None:
        """Log how many are right."""
        images, labels = batch
        right = (self.net(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Say it."""
        accuracy = self.trainer.callback_metrics["accuracy"]
        self.print(f"step {self.global_step}, epoch {self.current_epoch + 1}: {accuracy:.1%} right", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, for brevity."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def main() -> None:
    """Parse the options and fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many, wherever that is in an epoch")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="processes, one a device")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument(
        "--out", type=Path, default=Path("out/examples"), help="where the sample data and checkpoints are"
    )
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    data = CompressedData(
        sample_shards(options.out, "tiles-train"), sample_shards(options.out, "tiles-test"), workers=options.workers
    )
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        max_steps=options.steps,
        devices=options.devices,
        callbacks=[ModelCheckpoint(options.out, "last", every_n_train_steps=5, enable_version_counter=False)],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
    )
    # Nothing but tensors and plain values is in such a checkpoint, so nothing else need be allowed in it.
    trainer.fit(Classifier(len(CLASSES)), datamodule=data, ckpt_path=options.resume, weights_only=True)
    state = data.training.state_dict()
    print(f"stopped in epoch {state['epoch'] + 1} behind image {state['used']} of {state['samples']}", flush=True)


if __name__ == "__main__":
    main()
