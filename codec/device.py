"""Which device, how tensors come to it and back, and which precision inside the residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["finish_transfers", "receive", "resolve_device", "resolve_precision", "send"]

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
        raise ConfigError(f"device {chosen} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
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


def receive(tensor: Tensor) -> Tensor:
    """The tensor in host memory. From CUDA it comes into pinned memory, all of it only after ``finish_transfers``."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def finish_transfers(device: torch.device) -> None:
    """Wait until the device has done what its current stream holds so far, and for nothing that comes later."""
    if device.type == "cuda":
        # Blocking, because waiting busily would take a core from the threads that quantise.
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(device))
        event.synchronize()


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16"):
        return True
    # Where Intel has these instructions without AMX, they are no faster than those for float32, and numbers are
    # converted there and back: the transforms take 1.5 times as long. On AMD's they are faster.
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in str(capabilities.get("cpu_name", ""))
