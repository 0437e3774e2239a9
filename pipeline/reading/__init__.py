"""Converted shards, to be read: which there are, their files, their samples in an order, and their weights."""
