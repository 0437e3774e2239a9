"""What each term of the objective buys: four trainings that differ in nothing else, judged alike.

    python -m benchmarks.quality.ablation FOLDER… --start default --steps 800 --out out/ablation

Rate and distortion; with feature consistency; with MMD; with both (Yang et al., ACM MM 2020, have this table). All arms
have the same start, seed, crops and number of steps; what they are judged by is what ``benchmarks.quality.full`` finds
(see there for the data), classification and photographs. Trained arms and measured rows are kept in the output folder.

The squared error weighs a tenth where features take part, which moves an arm's rates to about the same qualities; the
balance of the terms is that of ``codec/weights/default.toml``. Short runs tell directions, not what long ones reach.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from discernible.codec.training.config import TrainConfig
from discernible.codec.training.objectives import ObjectiveConfig, TermConfig
from discernible.codec.training.train import train
from discernible.codec.weights import load_weights
from discernible.jobs.evaluation.run import EvaluationConfig, evaluate

from .full import data_folder, evaluation_data

_MSE, _FEATURES, _MMD = 0.1, 200.0, 200.0
# The most that the noisy gradients of the features bear.
_LEARNING_RATE = 2.5e-4
ARMS = {
    "rate + distortion": {"mse": 1.0},
    "+ features": {"mse": _MSE, "features": _FEATURES},
    "+ MMD": {"mse": 1.0, "mmd": _MMD / _MSE},
    "+ both": {"mse": _MSE, "features": _FEATURES, "mmd": _MMD},
}


def objective(weights: dict[str, float]) -> ObjectiveConfig:
    """Perceptual terms look at half of each batch and are there from the first step: the start is a trained codec."""
    terms = {
        name: TermConfig(weight=weight, share=1.0 if name == "mse" else 0.5, ramp=0.0 if name == "mse" else 0.1)
        for name, weight in weights.items()
    }
    return ObjectiveConfig(terms=terms)


def main() -> None:
    """Train what is not trained, measure what is not measured, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", type=Path, nargs="+", help="photographs to train on")
    parser.add_argument("--start", default="default", help="weights that all arms begin with")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--limit", type=int, help="at most so many labelled pictures to judge by")
    parser.add_argument("--no-photos", action="store_true", help="judge by classification alone")
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--markdown", type=Path, help="write the tables here as Markdown, too")
    options = parser.parse_args()
    start = load_weights(options.start)
    paths = []
    for number, (name, weights) in enumerate(ARMS.items()):
        config = TrainConfig(
            output=options.out / f"arm{number}",
            folders=tuple(options.folders),
            name=name,
            start=options.start,
            steps=options.steps,
            seed=options.seed,
            precision=options.precision,
            learning_rate=_LEARNING_RATE,
            fit_crops=256,
            validate_photos=0,
            transforms=start.config,
            objective=objective(weights),
        )
        path = config.output / "weights.safetensors"
        if not path.exists():
            print(f"{name}: {config.objective.describe()}", file=sys.stderr)
            trained = train(config, report=lambda line: print(line, file=sys.stderr))
            assert trained is not None
        paths.append(str(path))
    found = evaluation_data(data_folder())
    photos = None if options.no_photos else found.photos
    if photos is None and found.labelled is None:
        sys.exit("no evaluation data: set DISCERNIBLE_DATA_DIR")
    result = evaluate(
        EvaluationConfig(
            output=options.out,
            weights=tuple(paths),
            photos=photos,
            features=found.features if photos else None,
            labelled=found.labelled,
            classifiers=found.classifiers,
            codecs=("JPEG 4:2:0",),
            limit=options.limit,
            markdown=options.markdown,
            command=shlex.join(["python", "-m", "benchmarks.quality.ablation", *sys.argv[1:]]),
        ),
        report=lambda line: print(line, file=sys.stderr),
    )
    for part in result.sections:
        for table in part.tables:
            print(f"\n{part.title}: {table.title}")
            for row in (table.header, *table.rows):
                print(" | ".join(row))


if __name__ == "__main__":
    main()
