"""ZDS: how a node agent hands workloads to its ztunnel (istio-facts 9); no I/O."""
