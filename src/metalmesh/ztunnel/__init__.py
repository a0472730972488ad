"""The L4 proxy of a node: a main process and its data workers."""
