"""xDS: resource codecs and the delta protocol's two ends, without I/O."""
