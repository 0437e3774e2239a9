"""The same decoder for webdataset, Pillow and Ray Data."""
