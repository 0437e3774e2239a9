"""What a destination is made of: tars and their samples, receipts, statistics, the index."""
