"""The transforms, pixels to latents and back: as trained, folded for a quality, in bytes, of parts.

Besides the class prior of training."""
