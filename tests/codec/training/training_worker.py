"""One of two training processes: ``python training_worker.py RANK PORT,PORT,… FOLDER``, one port a scenario.

Writes what the test compares: the parameters of this rank at every checkpoint, and how each scenario ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from discernible.codec.training.checkpoint import TrainingState
from discernible.codec.training.objectives import Objective, ObjectiveOutput
from discernible.codec.training.train import TrainConfig, train
from discernible.errors import DiscernibleError


def main(rank: int, ports: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    config = TrainConfig.from_toml(folder / "train.toml")
    save, call = TrainingState.save, Objective.__call__
    ends: dict[str, str] = {}

    def run(name: str, output: str, stop_at: int | None = None) -> None:
        os.environ["MASTER_PORT"] = ports.pop(0)
        lines: list[str] = []
        asked = 0

        def stopping() -> bool:
            nonlocal asked
            asked += 1
            return stop_at is not None and rank == 1 and asked >= stop_at

        def save_and_show(state: TrainingState, path: Path) -> None:
            save(state, path)
            parameters = {key: value.clone() for key, value in state.network.state_dict().items()}
            parameters |= {f"average.{key}": value.clone() for key, value in state.average.items()}
            save_file(parameters, folder / f"{name}.{rank}.safetensors")

        TrainingState.save = save_and_show
        try:
            path = train(dataclasses.replace(config, output=folder / output), report=lines.append, stopping=stopping)
            ends[name] = "stopped" if path is None else f"finished {path.is_file()}"
        except DiscernibleError as error:
            ends[name] = f"{type(error).__name__}: {error}"
        ends[f"{name} lines"] = "\n".join(lines)

    run("straight", "straight")
    run("stopped", "broken", stop_at=3)
    run("resumed", "broken")

    def poisoned(objective: Objective, *arguments: torch.Tensor) -> ObjectiveOutput:
        output = call(objective, *arguments)
        return dataclasses.replace(output, loss=output.loss * (float("nan") if rank == 1 else 1.0))

    Objective.__call__ = poisoned
    run("poisoned", "poisoned")
    (folder / f"ends.{rank}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
