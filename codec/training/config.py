"""All that decides a training run, and how it is read from a TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...stored import LARGEST, shown
from ..network.prior import PriorConfig
from ..network.transforms import TransformConfig
from ..weights import load_weights
from .head import ImportanceConfig
from .objectives import ObjectiveConfig
from .photos import CropConfig

__all__ = ["TrainConfig"]

# What may change between the parts of a run that is resumed: where things are, when it ends, what it tells.
_FREE = {
    "output", "folders", "reduced_folders", "name", "steps", "minutes", "device", "precision", "start_crops",
    "fit_crops", "refit_steps", "refit_rate", "validation", "validate_photos", "validate_minutes", "validate_every",
    "checkpoint_minutes", "log_every", "tensorboard", "crops.max_photos", "crops.max_memory_gib",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides a training run; ``from_toml`` reads it from a file with the same names.

    ``folders`` hold photographs, ``reduced_folders`` those of middling quality, which are always reduced before they
    are cropped, so that the traces of their compression vanish (``crops`` says how).

    ``minutes`` bounds the run by the clock instead of ``steps`` when it comes first: the learning rate then follows the
    share of the time that is spent. Most images take a quality from ``quality_range``, a fifth from the whole range.
    ``start_crops`` give the KLT and the first classes, ``fit_crops`` the entropy tables at the end; then the synthesis
    is trained for ``refit_steps`` on really coded crops, at ``refit_rate`` times the learning rate. ``start`` names
    weights (shipped, or a file) to go on from instead of the KLT, with the same channels, latents and classes; residual
    blocks that these lack begin as identities, and a swift synthesis as the best straight fit. ``schedule``: after the
    warm-up the learning rate follows a ``cosine`` down to 0, or stays ``constant``, for a run whose weights another one
    starts from. ``average`` is the decay a step of the moving average of the parameters (0: none), which is what ends
    up in the weights. ``batch`` is that of each process.

    ``validation`` is a folder of photographs for the measurements on the way; without it up to ``validate_photos``, and
    no more than a tenth of those in ``folders``, are held out. They are measured every ``validate_minutes``, or every
    ``validate_every`` steps when that is above 0; ``validate_photos = 0`` turns it off.
    """

    output: Path
    folders: tuple[Path, ...]
    reduced_folders: tuple[Path, ...] = ()
    name: str = "custom"
    start: str | None = None
    steps: int = 20_000
    minutes: float | None = None
    batch: int = 8
    learning_rate: float = 1e-3
    linear_rate: float = 0.2
    schedule: str = "cosine"
    average: float = 0.999
    prior_rate: float = 4.0
    warmup: int = 200
    quality_range: tuple[int, int] = (10, 90)
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    start_crops: int = 1536
    fit_crops: int = 768
    refit_steps: int = 0
    refit_rate: float = 0.3
    checkpoint_minutes: float = 5.0
    log_every: int = 50
    validation: Path | None = None
    validate_photos: int = 8
    validate_minutes: float = 10.0
    validate_every: int = 0
    tensorboard: bool = False
    crops: CropConfig = dataclasses.field(default_factory=CropConfig)
    transforms: TransformConfig = dataclasses.field(default_factory=TransformConfig)
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        low, high = self.quality_range
        checks = {
            "folders must name at least one folder": bool(self.folders),
            "steps must be at least 0": self.steps >= 0,
            "minutes must be above 0": self.minutes is None or self.minutes > 0,
            "batch must be at least 1": self.batch >= 1,
            "start_crops and fit_crops must be at least 16": min(self.start_crops, self.fit_crops) >= 16,
            "refit_steps must be at least 0 and refit_rate above 0": self.refit_steps >= 0 and self.refit_rate > 0,
            "learning_rate must be above 0": self.learning_rate > 0,
            "linear_rate and prior_rate must be at least 0": min(self.linear_rate, self.prior_rate) >= 0,
            "schedule must be cosine or constant": self.schedule in ("cosine", "constant"),
            "importance.only needs starting weights": self.start is not None or not self.importance.only,
            "average must be at least 0 and below 1": 0 <= self.average < 1,
            "warmup and seed must be at least 0": min(self.warmup, self.seed) >= 0,
            "quality_range must be two qualities, rising, from 1 to 100": 1 <= low <= high <= 100,
            "precision must be auto, float32 or bfloat16": self.precision in ("auto", "float32", "bfloat16"),
            "log_every must be at least 1": self.log_every >= 1,
            "checkpoint_minutes must be at least 0": self.checkpoint_minutes >= 0,
            "validate_photos and validate_every must be at least 0": min(self.validate_photos, self.validate_every)
            >= 0,
            "validate_minutes must be above 0": self.validate_minutes > 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise ConfigError(f"training configuration: {message}")

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read a configuration file; relative folders and files in it count from the file's own folder.

        With ``start``, tables ``transforms`` and ``prior`` that are missing are those of the starting weights.

        Raises:
            ConfigError: no file, no TOML, a key that is missing or unknown, a value of another kind or range.
            WeightsError: no usable starting weights.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read training configuration {path}: {exc.strerror}") from exc
        except RecursionError as exc:
            raise ConfigError(f"training configuration {path} is nested too deeply") from exc
        except ValueError as exc:
            # No TOML, no UTF-8, or a number of thousands of digits.
            raise ConfigError(f"training configuration {path} is not valid TOML: {str(exc)[:200]}") from exc
        objective = table.pop("objective", {})
        if not isinstance(objective, Mapping):
            raise ConfigError(f"training configuration {path}: objective must be a table")
        values = _checked(cls, table, f"training configuration {path}")
        base = path.resolve().parent
        values["output"] = base / values["output"]
        for name in ("folders", "reduced_folders"):
            values[name] = tuple(base / folder for folder in values.get(name, ()))
        if "validation" in values:
            values["validation"] = base / values["validation"]
        if values.get("start", "").endswith(".safetensors"):
            values["start"] = str(base / values["start"])
        if "start" in values and not {"transforms", "prior"} <= values.keys():
            weights = load_weights(values["start"])
            values.setdefault("transforms", weights.config)
            values.setdefault("prior", PriorConfig(classes=weights.tables.classes))
        return cls(**values, objective=ObjectiveConfig.from_table(objective))

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with its checkpoint, as JSON values by dotted name."""
        flat = _flat(dataclasses.asdict(self))
        # The folder of the starting weights may have moved since.
        flat["start"] = Path(self.start).name if self.start else None
        # The importance head is trained from the start at the end of a run.
        return {name: value for name, value in flat.items() if name not in _FREE and not name.startswith("importance.")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _checked(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a table, checked against the fields of a dataclass; tables inside become their dataclasses."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in hints:
            raise ConfigError(f"{where}: unknown key {shown(name)}; there are {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} must be a table, not {shown(value)}")
            inner = typing.cast("type", hints[name])
            values[name] = inner(**_checked(inner, value, f"{where}: [{name}]"))
        elif not _fits(value, hints[name]):
            raise ConfigError(f"{where}: {name} must be {_in_words(hints[name])}, not {shown(value)}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ConfigError(f"{where} lacks {field.name!r}")
    return values


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, list):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float and isinstance(value, float):
        return True
    if hint in (float, int):
        # TOML's whole numbers may have any number of digits.
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, str if hint is Path else hint)


def _in_words(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return _in_words(typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        return "a list of strings" if parts[-1] is Ellipsis else f"a list of {len(parts)} whole numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a string")
