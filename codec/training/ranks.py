"""Several training processes: who this one is, and what they agree on. One process is the special case of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import traceback
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import ConfigError
from ..device import resolve_device

__all__ = ["Ranks", "Stopped"]

# The others wait this long for rank 0 to validate, to fit the tables and to write.
_PATIENCE = dt.timedelta(hours=2)


class Stopped(Exception):
    """Somebody asked the run to end before it was done."""


class Ranks:
    """The processes of one training: ``rank`` of ``size``, each with its ``device``. Made by :meth:`joined`."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @classmethod
    @contextlib.contextmanager
    def joined(cls, device: str) -> Iterator[Ranks]:
        """Join the process group that torchrun's environment variables name, when they do, and leave it at the end.

        ``device`` as in the configuration; ``auto`` and ``cuda`` give each process the GPU of its LOCAL_RANK. Raises
        ConfigError for variables that make no sense and for devices that are not there.
        """
        try:
            rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            local = int(os.environ.get("LOCAL_RANK", "0"))
        except ValueError as exc:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {exc}") from exc
        chosen = resolve_device(device)
        if size == 1:
            yield cls(0, 1, chosen)
            return
        if not dist.is_available():
            raise ConfigError("this build of PyTorch has no torch.distributed: train with one process")
        if chosen.type == "cuda" and chosen.index is None:
            chosen = resolve_device(f"cuda:{local}")
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
        except (ValueError, RuntimeError) as exc:
            raise ConfigError(
                f"cannot join the other training processes: {exc}; start them with torchrun, which sets RANK, "
                "WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            ) from exc
        try:
            yield cls(rank, size, chosen)
        except BaseException as exc:
            # The traceback keeps the wrapped module alive. Its destructor would then be the one that ends the group's
            # threads, and it holds the interpreter lock that they wait for.
            traceback.clear_frames(exc.__traceback__)
            raise
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor]

    def average_(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its mean over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def gather(self, row: Tensor) -> list[Tensor]:
        """The rows (uint8, of one size) of all processes, in order of rank, on the CPU."""
        if self.size == 1:
            return [row]
        rows = [torch.empty_like(row, device=self.device) for _ in range(self.size)]
        dist.all_gather(rows, row.to(self.device))
        return [row.cpu() for row in rows]

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.size > 1:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.detach(), 0)

    def distribute(self, step: nn.Module, *, unused: bool) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the processes in ``backward``. ``unused``: some
        parameters may get no gradient."""
        if self.size == 1:
            return step
        return nn.parallel.DistributedDataParallel(
            step,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=unused,
        )

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()
