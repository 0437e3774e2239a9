"""Batches of images for training."""
