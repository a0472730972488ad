"""DNS for service names: wire format and name resolution; no I/O (istio-facts 7)."""
