"""The node agent: everything a mesh workload needs from its machine."""
