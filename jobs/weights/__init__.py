"""Training weights, and listing those that are there."""
