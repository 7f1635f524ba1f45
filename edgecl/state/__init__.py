"""The state directory: bytes, files, database, write-ahead log."""
