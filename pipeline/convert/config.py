"""How shards are converted, but for what they are."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...errors import ConfigError
from ...settings import check_settings, setting, settings_from_json, settings_to_json
from ...stored import FieldError, Fields
from ..images.policy import PixelPolicy
from ..shards.pairs import parse_pairs

__all__ = ["ConvertConfig"]

_MOST_THREADS = 1 << 16
_MOST_DECIBELS = 1000.0


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How shards are converted.

    ``quality`` is 1..100. ``weights`` is the name of shipped codec weights or the path of a file, ``guide`` what tells
    the encoder where networks look (see ``Codec.load``); ``device`` is
    ``auto``, ``cpu`` or ``cuda[:i]``. ``threads`` threads decode pixels, quantise and code entropy, and as many serve
    the codec on a CPU. The codec gets at most ``batch_pixels`` padded pixels at once (a single larger image alone) and
    looks at most ``lookahead`` samples ahead for images of one size. ``image_member`` names the extension of the member
    to compress, see :mod:`.shards.samples`; a sample without image is quarantined or passed through unchanged, by
    ``missing_image``. Members of tars that match a shell pattern of ``carry``, ``KEY.EXTENSION`` as a whole, are never
    the image; samples of which that leaves none are passed through. ``pairs`` are those that the files of a folder were
    listed with (:mod:`.shards.pairs`). Label maps (:mod:`.images.label_maps`) are quarantined, or with
    ``lossy_maps`` coded like photographs. ``measure_psnr`` decodes every image again.

    An image whose PSNR is below ``min_psnr`` (dB) is coded at a higher quality, and where the highest does not suffice
    it is passed through. With ``passthrough_smaller`` so is one whose file is no larger than its stream.
    """

    quality: int = setting(50, "1 (smallest) to 100 (best).", least=1, most=100, short="q")
    weights: str = setting("default", "Codec weights.", metavar="NAME|FILE")
    guide: str = setting(
        "auto",
        "What tells the encoder where networks look: auto (the weights' own head), none, or networks such as "
        "efficientnet-lite0 or vgg16:FILE (exact, slow), with commas between.",
        metavar="NAME|FILE|none",
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    threads: int = setting(1, least=1, most=_MOST_THREADS)
    batch_pixels: int = setting(1 << 22, least=1)
    lookahead: int = setting(256, least=1)
    image_member: str | None = setting(None, "Which member is the image, where samples have several.", metavar="EXT")
    missing_image: Literal["quarantine", "passthrough"] = setting(
        "quarantine", "What happens to samples without an image."
    )
    carry: tuple[str, ...] = setting(())
    pairs: tuple[str, ...] = setting(())
    lossy_maps: bool = setting(
        False, "Code label maps, masks and depth like photographs instead of refusing.", flag="--lossy-maps"
    )
    measure_psnr: bool = setting(True, "Decode every image again to measure its PSNR.", flag="--psnr/--no-psnr")
    min_psnr: float | None = setting(
        None,
        "Code worse images at a higher quality, or keep them as they are.",
        above=0,
        most=_MOST_DECIBELS,
        metavar="DB",
    )
    passthrough_smaller: bool = setting(
        False, "Keep image files that are no larger than their streams.", flag="--passthrough-smaller"
    )
    pixels: PixelPolicy = field(default_factory=PixelPolicy)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.device not in ("auto", "cpu") and self.device.split(":")[0] != "cuda":
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if self.min_psnr is not None and not self.measure_psnr:
            raise ConfigError("min psnr needs the PSNR to be measured: --psnr")
        if self.image_member is not None and not self.image_member.strip("."):
            raise ConfigError("image member must be an extension such as 'jpg' or 'rgb.png'")
        if self.device == "cpu" and self.pixels.jpeg == "gpu":
            raise ConfigError("device cpu and JPEG decoding on a GPU contradict each other")
        parse_pairs(self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_dict` reads it back."""
        return {**settings_to_json(self), "pixels": self.pixels.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvertConfig:
        """The configuration that :meth:`to_dict` wrote. Raises ConfigError for fields that are unknown or no such."""
        try:
            told = Fields(data, "the configuration")
            told.only([each.name for each in fields(cls)])
            pixels = PixelPolicy.from_dict(told.raw("pixels"))
            # What was written before there were guides had none.
            return cls(**{"guide": "none", **settings_from_json(cls, told), "pixels": pixels})
        except FieldError as exc:
            raise ConfigError(f"a conversion's configuration is damaged: {exc}") from exc

    def identity(self) -> dict[str, Any]:
        """What shapes the output, as JSON types: everything but where and with how many threads it is made."""
        values = {name: value for name, value in self.to_dict().items() if name not in ("device", "threads")}
        if self.guide == "none":
            del values["guide"]
        # Without these, plans are those of releases that did not have them.
        return {name: value for name, value in values.items() if value or name not in ("carry", "pairs", "lossy_maps")}
