"""Certificates, signing requests and tokens; no I/O, ``now`` is an argument."""
