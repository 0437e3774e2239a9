"""Shards, storage, the conversion of one shard and the loader. No command line and no scheduling in here."""

from __future__ import annotations
