"""A cluster that grows and shrinks under a job; prints what became of it. test_fleet.py runs it."""

from __future__ import annotations

import json
import time
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from discernible.jobs.conversion.progress import Counts, Meter, NullDisplay
from discernible.jobs.workers.actors import WorkerInfo
from discernible.jobs.workers.cluster import Layout
from discernible.jobs.workers.dispatch import Dispatcher, DispatchPolicy, Task
from discernible.jobs.workers.fleet import current_fleet

LAYOUT = Layout(workers=1, cpus=1, gpus=0)
SHARDS = 200


class Worker:
    """Takes a while for each shard, and says where it is."""

    def setup(self) -> WorkerInfo:
        return WorkerInfo(device="none", threads=1, node_id=ray.get_runtime_context().get_node_id(), pid=0)

    def convert(self, name: str) -> str:
        time.sleep(0.1)
        return str(ray.get_runtime_context().get_node_id())

    def progress(self) -> dict[str, Any]:
        return {}

    def stop(self, name: str) -> None:
        pass


class Watcher(NullDisplay):
    """Adds a node, waits until it works, drains it, and notes where shards are done after that."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(
            Meter(
                shards_left=SHARDS, bytes_left=SHARDS, read_progress=lambda _: Counts(), read_result=lambda _: Counts()
            )
        )
        self.cluster = cluster
        self.done: list[str] = []
        self.notices: list[str] = []
        self.second: str | None = None
        self.drained_at: int | None = None

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def shard_done(self, shard: str, result: str) -> None:
        self.done.append(result)
        if len(self.done) == 10:
            self.second = self.cluster.add_node(
                num_cpus=1, node_ip_address="127.0.0.3", object_store_memory=80_000_000
            ).node_id
        if self.drained_at is None and self.second is not None and self.done.count(self.second) >= 10:
            self.drained_at = len(self.done)
            client = ray._raylet.GcsClient(address=self.cluster.address)
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline = int(1000 * (time.time() + 600))
            accepted, why = client.drain_node(self.second, reason, "the price went up", deadline)
            assert accepted, why


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.2", "object_store_memory": 80_000_000},
    )
    ray.init(address=cluster.address, log_to_driver=False, _node_ip_address="127.0.0.2")
    head = ray.get_runtime_context().get_node_id()
    actor = ray.remote(Worker).options(num_cpus=1, max_concurrency=4)
    watcher = Watcher(cluster)
    dispatcher = Dispatcher(
        actor.remote,
        [Task(name=f"{number:03}", arguments=(f"{number:03}",)) for number in range(SHARDS)],
        DispatchPolicy(workers=1),
        watcher,
        fleet=lambda: current_fleet(LAYOUT),
    )
    dispatcher.fleet_seconds = 0.5
    outcome = dispatcher.run()
    # What it had begun when it was told is still done, and a moment passes until the driver learns of it.
    late = [node for node in watcher.done[(watcher.drained_at or 0) + 40 :] if node != head]
    told = {
        "done": outcome.done,
        "failures": len(outcome.failures),
        "second": watcher.done.count(watcher.second or ""),
        "drained_at": watcher.drained_at,
        "late": len(late),
        "notices": watcher.notices,
    }
    print(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
