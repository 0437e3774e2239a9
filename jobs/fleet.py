"""What a cluster offers while a job runs: nodes come, nodes are about to leave."""

from __future__ import annotations

import logging
from typing import Any

import ray

from .cluster import Layout
from .dispatch import Fleet

__all__ = ["current_fleet"]

_log = logging.getLogger(__name__)


def current_fleet(layout: Layout, *, workers: int | None = None) -> Fleet:
    """How many workers as ``layout`` describes them there is room for, and which nodes are about to leave.

    ``workers`` fixes their number, so that a cluster which grows on demand sees how much is wanted.
    """
    leaving = draining_nodes()
    room = sum(
        _fitting(node["Resources"], layout) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving
    )
    return Fleet(workers=workers if workers is not None else max(1, room), leaving=leaving)


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that Ray was told to drain: by a preemption notice, an autoscaler, or ``ray drain-node``."""
    try:
        # No public call tells; Ray's own libraries use this one.
        state: Any = ray._private.state.state
        return frozenset(state.get_draining_nodes())
    except Exception as error:  # noqa: BLE001  another version of Ray, or a client of a remote one: a hint less
        _log.debug("Ray does not tell which nodes are drained: %s", error)
        return frozenset()


def _fitting(resources: dict[str, float], layout: Layout) -> int:
    fits = int(resources.get("CPU", 0) // layout.cpus)
    if layout.gpus:
        fits = min(fits, int(resources.get("GPU", 0) / layout.gpus + 1e-6))
    return fits
