"""Quality 1–100: one number that sets the gain on the latents, and with it the rate–distortion trade-off.

Twenty quality steps double the gain (halve the quantisation step). The scale of a latent in units of the quantisation
step then doubles as well, so on the log-spaced scale grid of :mod:`.stream.tables`, whose pitch is one quality step, a
change of quality is an integer added to every scale index: one table of scales serves every quality, exactly.
"""

from __future__ import annotations

from ..errors import ConfigError

__all__ = ["QUALITIES", "STEPS_PER_OCTAVE", "check_quality", "gain", "trade_off"]

QUALITIES = range(1, 101)
STEPS_PER_OCTAVE = 20
_REFERENCE = 50
_STEP_AT_REFERENCE = 48.0
_TRADE_OFF_AT_REFERENCE = 0.0095


def check_quality(quality: object) -> int:
    """Return ``quality`` when it is an integer from 1 to 100, else raise :class:`ConfigError`."""
    if isinstance(quality, bool) or not isinstance(quality, int) or quality not in QUALITIES:
        raise ConfigError(f"quality must be an integer from 1 (smallest) to 100 (best), not {quality!r}")
    return quality


def gain(quality: float) -> float:
    """Factor on the latents before rounding: the inverse of the quantisation step in units of the 0…255 pixel scale."""
    return float(2.0 ** ((quality - _REFERENCE) / STEPS_PER_OCTAVE) / _STEP_AT_REFERENCE)


def trade_off(quality: float) -> float:
    """λ of ``bpp + λ·MSE255`` that this quality is trained for.

    High-rate theory has the best uniform step Δ at λ ∝ 1/Δ² (Gish and Pierce 1968), hence twice the gain's exponent.
    """
    return float(_TRADE_OFF_AT_REFERENCE * 2.0 ** (2 * (quality - _REFERENCE) / STEPS_PER_OCTAVE))
