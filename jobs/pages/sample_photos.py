"""Photographs that installed packages ship, as files: what the demo runs on, without a download."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ...errors import SourceError

__all__ = ["SamplePhoto", "sample_photos"]


@dataclass(frozen=True, kw_only=True)
class SamplePhoto:
    """A colour photograph inside an installed package."""

    name: str
    path: Path
    about: str
    origin: str
    """Package and version that ship it."""


_SKIMAGE = ("skimage", "scikit-image", "data")
_SKLEARN = ("sklearn", "scikit-learn", "datasets/images")

# Left out on purpose: motorcycle_right is the stereo twin of motorcycle_left, and the 2-megapixel retina scan would
# take half of the demo's time.
_SHIPPED: tuple[tuple[tuple[str, str, str], str, str], ...] = (
    (_SKLEARN, "china.jpg", "building"),
    (_SKLEARN, "flower.jpg", "flower"),
    (_SKIMAGE, "astronaut.png", "portrait"),
    (_SKIMAGE, "chelsea.png", "cat"),
    (_SKIMAGE, "coffee.png", "still life"),
    (_SKIMAGE, "motorcycle_left.png", "workshop"),
    (_SKIMAGE, "rocket.jpg", "rocket launch"),
    (_SKIMAGE, "hubble_deep_field.jpg", "space telescope, not an everyday photo"),
    (_SKIMAGE, "ihc.png", "microscope, not an everyday photo"),
)


def sample_photos(limit: int | None = None) -> tuple[SamplePhoto, ...]:
    """The photographs of scikit-learn and scikit-image that are installed, at most ``limit``.

    Raises SourceError when neither package is there.
    """
    found: list[SamplePhoto] = []
    for (module, distribution, folder), file, about in _SHIPPED:
        # The package's place is enough: importing scikit-image and scikit-learn would take seconds.
        spec = importlib.util.find_spec(module)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(place) / folder / file
            if path.is_file():
                origin = f"{distribution} {importlib.metadata.version(distribution)}"
                found.append(SamplePhoto(name=path.stem, path=path, about=about, origin=origin))
                break
    if not found:
        raise SourceError(
            "the demo's photographs are shipped by scikit-image and scikit-learn, and neither is installed: "
            'pip install "discernible[demo]"'
        )
    return tuple(found[:limit])
