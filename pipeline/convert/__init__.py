"""One source shard into one converted one, and back."""
