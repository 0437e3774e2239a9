"""What is converted: folders, tars and Parquet files, cut into source shards."""
