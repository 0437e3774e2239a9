"""Which device, how tensors come to it and back, and which precision inside the residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["Received", "Sent", "Transfers", "resolve_device", "resolve_precision", "send"]

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA when there is one; anything else as PyTorch names it. Raises ConfigError if it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as exc:
        raise ConfigError(f"unknown device {str(device)!r}; use auto, cpu, cuda or cuda:N") from exc
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device {chosen} is not there: PyTorch sees {count} CUDA devices; "
            f"{'cuda:0 to cuda:' + str(count - 1) if count else 'auto or cpu'} can be had"
        )
    return chosen


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it faster, else float32."""
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision must be auto, float32 or bfloat16, not {precision!r}")
    return _PRECISIONS[precision]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. CUDA fetches it from pinned memory, and the caller goes on meanwhile."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Sent:
    """Tensors on their way to a device."""

    def __init__(self, tensors: Sequence[Tensor], arrived: torch.cuda.Event | None) -> None:
        self._tensors = list(tensors)
        self._arrived = arrived

    def tensors(self) -> list[Tensor]:
        """For use on the current stream, which waits for them; the caller does not."""
        if self._arrived is not None and self._tensors:
            stream = torch.cuda.current_stream(self._tensors[0].device)
            stream.wait_event(self._arrived)
            for tensor in self._tensors:
                # Their memory belongs to the other stream, which would give it away too early.
                tensor.record_stream(stream)
        return self._tensors


class Received:
    """That tensors are on their way to host memory."""

    def __init__(self, arrived: torch.cuda.Event | None) -> None:
        self._arrived = arrived

    def wait(self) -> None:
        """Until they are there; without the interpreter lock."""
        if self._arrived is not None:
            self._arrived.synchronize()


class Transfers:
    """Copies between host and device beside what the device computes: on CUDA each way on a stream of its own, from and
    to pinned memory. Elsewhere there is nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up: torch.cuda.Stream | None = None
        self._down: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def send(self, make: Callable[[], Sequence[Tensor]]) -> Sent:
        """Begin to send what a function returns, on its stream; from any thread, and ahead of the work on it."""
        if self._up is None:
            return Sent([tensor.to(self._device) for tensor in make()], None)
        with torch.cuda.stream(self._up):
            return Sent([send(tensor, self._device) for tensor in make()], self._up.record_event())

    def receive(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Received]:
        """Begin to receive what the current stream makes; the results in host memory are complete after ``wait``."""
        if self._down is None:
            return [tensor.cpu() for tensor in tensors], Received(None)
        # A thread that waits busily would take a core from those that quantise.
        arrived = torch.cuda.Event(blocking=True)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            hosts = []
            for tensor in tensors:
                host = torch.empty_like(tensor, device="cpu", pin_memory=True)
                hosts.append(host.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._down)
            arrived.record(self._down)
        return hosts, Received(arrived)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16"):
        return True
    # Where Intel has these instructions without AMX, they are no faster than those for float32, and numbers are
    # converted there and back: the transforms take 1.5 times as long. On AMD's they are faster.
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in str(capabilities.get("cpu_name", ""))
