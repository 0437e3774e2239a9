"""``discernible weights`` as a function: the weights that come with the package, and their model cards."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType

from ..console.facts import facts
from ..console.text import format_bytes

__all__ = ["InstalledWeights", "installed_weights"]


@dataclass(frozen=True, kw_only=True)
class InstalledWeights:
    """One set of weights. ``card`` is its model card (Markdown), empty when it has none."""

    name: str
    fingerprint: str
    path: str
    bytes: int
    card: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def render(self) -> RenderableType:
        """For people."""
        rows = [("name", self.name), ("fingerprint", self.fingerprint)]
        head = facts([*rows, ("file", f"{self.path} ({format_bytes(self.bytes)})")])
        return Group(head, "", self.card.strip(), "") if self.card else head


def installed_weights() -> tuple[InstalledWeights, ...]:
    """All weights of the package, by name.

    Raises:
        WeightsFormatError: a shipped file is damaged.
    """
    from ...codec.weights import list_weights, load_weights

    return tuple(
        InstalledWeights(
            name=entry.name,
            fingerprint=load_weights(entry.path).fingerprint,
            path=str(entry.path),
            bytes=entry.bytes,
            card=entry.card,
        )
        for entry in list_weights()
    )
