"""Frozen values of the mesh and the parsing of its resources; no I/O."""
