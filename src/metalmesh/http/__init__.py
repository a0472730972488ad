"""HTTP protocol cores: bytes and events in, bytes and events out."""
