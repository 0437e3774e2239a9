"""The `.dci` stream: header, latents, entropy tables and coder, the choice of symbols. No network.

Integers and NumPy, but for latents on their way to a device.
"""
