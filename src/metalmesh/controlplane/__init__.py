"""The control plane: store, computation, xDS and CA service."""
