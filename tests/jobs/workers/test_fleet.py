"""Nodes that come and go while a job runs, on a real cluster of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_new_nodes_get_workers_and_leaving_ones_no_more_shards() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    script = Path(__file__).with_name("fleet_script.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["done"], told["failures"]) == (200, 0)
    assert told["second"] >= 10, "the node that joined was given work"
    assert told["drained_at"] is not None
    assert told["late"] == 0, "and none once it was about to leave"
    assert told["notices"] == ["a node is about to leave; its workers (1) get no more shards"]
