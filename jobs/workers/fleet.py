"""What a cluster offers while a job runs: nodes come, nodes are about to leave."""

from __future__ import annotations

import logging
from typing import Any

import ray

from .cluster import Layout
from .dispatch import Fleet

__all__ = ["current_fleet", "shortage"]

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


def shortage(layout: Layout) -> str | None:
    """What one worker as ``layout`` describes it waits for, and what the cluster has; None while there is room for it.

    ``1 CPU and 1 GPU a worker; the cluster has 4 CPUs (4 in use) and no GPUs``.
    """
    try:
        free: list[dict[str, float]] = list(_free_by_node().values())
        total, left = ray.cluster_resources(), ray.available_resources()
    except Exception as error:  # noqa: BLE001  a cluster that does not answer at the moment: a hint less
        _log.debug("Ray does not tell what is free: %s", error)
        return None
    if any(_fitting(node, layout) for node in free):
        return None
    needs = [f"{layout.cpus} CPU{'s' if layout.cpus != 1 else ''}"]
    if layout.gpus:
        needs.append(f"{layout.gpus:g} GPU{'s' if layout.gpus > 1 else ''}")
    has = " and ".join(_held(kind, total.get(kind, 0.0), left.get(kind, 0.0)) for kind in ("CPU", "GPU"))
    return f"{' and '.join(needs)} a worker; the cluster has {has}"


def _free_by_node() -> dict[str, dict[str, float]]:
    # No public call tells; where this one is missing or silent, the sum over the cluster is taken for a node's.
    try:
        state: Any = ray._private.state.state
        return dict(state.available_resources_per_node())
    except Exception as error:  # noqa: BLE001  another version of Ray, or a client of a remote one
        _log.debug("Ray does not tell what is free on each node: %s", error)
        return {"": ray.available_resources()}


def _held(kind: str, total: float, left: float) -> str:
    if not total:
        return f"no {kind}s"
    used = max(0.0, total - left)
    return f"{total:g} {kind}{'s' if total != 1 else ''}" + (f" ({used:g} in use)" if used else "")


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
