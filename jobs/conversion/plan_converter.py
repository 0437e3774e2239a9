"""A converter for shards of a conversion that is there already: with the options and the weights of its frozen plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError, DestinationError
from .plan import LABEL_OPTIONS, PLAN_NAME, Plan
from .spec import resolve_weights

if TYPE_CHECKING:
    from ...pipeline.convert.converter import ShardConverter
    from ...pipeline.storage.base import Storage

__all__ = ["plan_converter"]


def plan_converter(
    plan: Plan, storage: Storage, *, weights: str | None = None, device: str, threads: int
) -> ShardConverter:
    """The converter that makes what the plan says.

    The plan's weights are those that the destination carries, or that are found where readers look; ``weights`` names
    another file of them.

    Raises:
        DestinationError: the options of the plan are none, or the weights are not those of the plan.
        WeightsError: they cannot be found or read.
    """
    from ...codec import Codec
    from ...pipeline.convert.config import ConvertConfig
    from ...pipeline.convert.converter import ShardConverter
    from ...pipeline.reading.stream_weights import weights_of

    options = {name: value for name, value in plan.options.items() if name not in LABEL_OPTIONS}
    options |= {"device": device, "threads": threads}
    if weights is not None:
        options["weights"] = resolve_weights(weights)
    try:
        config = ConvertConfig.from_dict(options)
    except ConfigError as exc:
        raise DestinationError(f"{PLAN_NAME} in {storage.location} is not a plan of discernible: {exc}") from exc
    codec = None
    if weights is None:
        file = weights_of(plan.fingerprint, storage.location, s3=storage.options)
        codec = Codec.load(file, device=device, threads=threads, guide=config.guide)
    converter = ShardConverter(config, codec=codec)
    if converter.fingerprint != plan.fingerprint:
        raise DestinationError(
            f"the plan was made with the weights {plan.weights} ({plan.fingerprint}), these are "
            f"{converter.fingerprint}; name the file with --weights"
        )
    return converter
