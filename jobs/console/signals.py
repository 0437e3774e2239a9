"""Ctrl-C and SIGTERM as a request to stop: the first asks, the second insists."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["stop_on_signals"]


@contextlib.contextmanager
def stop_on_signals(request_stop: Callable[[], None], *, insist: bool = True) -> Iterator[None]:
    """While the context lasts, the first SIGINT or SIGTERM calls ``request_stop``, the next raise KeyboardInterrupt.

    Without ``insist`` they do nothing: a launcher may pass on to a worker what the terminal sent it already.
    Only the main thread may set handlers; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            if insist:
                raise KeyboardInterrupt
            return
        asked = True
        request_stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handle) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
