"""Which device, and which precision inside the residual blocks."""

from __future__ import annotations

import torch

from ..errors import ConfigError

__all__ = ["resolve_device", "resolve_precision"]

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
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32."""
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision must be auto, float32 or bfloat16, not {precision!r}")
    return _PRECISIONS[precision]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
