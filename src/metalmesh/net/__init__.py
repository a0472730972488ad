"""Sockets, network namespaces and netlink: the shells around the protocol cores."""
