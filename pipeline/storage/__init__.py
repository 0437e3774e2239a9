"""Where bytes live: local folders, S3 and the web under one interface, with patterns, scratch tables and caches."""
