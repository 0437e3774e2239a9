"""The learned image codec: tensors to bytes and back. Knows nothing of datasets, tars, storage or schedulers."""

from __future__ import annotations

from .bitstream import StreamInfo, read_stream_info
from .codec import Codec, Latents

__all__ = ["Codec", "Latents", "StreamInfo", "read_stream_info"]
