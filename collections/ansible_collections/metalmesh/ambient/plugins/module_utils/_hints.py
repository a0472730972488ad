# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""What is valid and still surprises: pure hints about resources."""

from __future__ import annotations

from typing import Any

#: port of HBONE, by which every connection inside the mesh arrives
PORT_HBONE = 15008
DIRECTIONS = (("ingress", "Ingress"), ("egress", "Egress"))


def hbone_hints(definitions: list[Any]) -> list[str]:
    """Return a line for each NetworkPolicy that lists ports and leaves out that of HBONE."""
    hints = []
    for definition in definitions:
        if not isinstance(definition, dict) or definition.get("kind") != "NetworkPolicy":
            continue
        metadata, spec = definition.get("metadata") or {}, definition.get("spec") or {}
        name = f"NetworkPolicy {metadata.get('namespace', 'default')}/{metadata.get('name')}"
        for key, direction in DIRECTIONS:
            ports = _listed_ports(spec.get(key) or [])
            if ports:
                hints.append(
                    f"{name} admits {direction.lower()} on {', '.join(ports)} but not on"
                    f" {PORT_HBONE}: connections inside the mesh arrive there and are blocked."
                    f" Add port {PORT_HBONE}; the ports it lists stay enforced inside HBONE."
                )
    return hints


def _listed_ports(rules: list[Any]) -> list[str]:
    """Return the TCP ports that rules list; none when a rule admits HBONE or every port."""
    found: list[str] = []
    for rule in rules:
        ports = (rule or {}).get("ports")
        if not ports or any(_admits_hbone(port) for port in ports):
            return []
        found += [str(port.get("port")) for port in ports if port.get("protocol", "TCP") == "TCP"]
    return found


def _admits_hbone(port: dict[str, Any]) -> bool:
    if port.get("protocol", "TCP") != "TCP":
        return False
    first = port.get("port")
    if first is None:
        return True
    if not isinstance(first, int):
        return False
    return first <= PORT_HBONE <= int(port.get("endPort", first))


__all__ = ["PORT_HBONE", "hbone_hints"]
