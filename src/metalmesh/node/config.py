"""Configuration of the node agent (``/etc/metalmesh/node.yaml``); pure parsing."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import (
    DEFAULT_CLUSTER_DOMAIN,
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    NODE_TOKEN_PATH,
    PORT_CONTROL_PLANE_METRICS,
    PORT_METRICS,
    PORT_NODE_AGENT,
    PORT_READINESS,
    PORT_XDS,
    PORT_ZTUNNEL_ADMIN,
    ROOT_CERT_PATH,
    WORKLOADS_DIR,
    ZDS_SOCKET,
)
from metalmesh.errors import ConfigError
from metalmesh.model.exclusions import Exclusions, merge_ports, parse_networks, parse_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMPONENT: Final = "node"
_DNS_ADDRESS: Final = IPv4Address("169.254.20.10")
#: what programs of the mesh serve on the machine's own addresses
_OWN_PORTS: Final = (
    PORT_ZTUNNEL_ADMIN,
    PORT_XDS,
    PORT_CONTROL_PLANE_METRICS,
    PORT_METRICS,
    PORT_READINESS,
)
_SERVICE_CIDR: Final = IPv4Network("10.96.0.0/16")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeConfig:
    """Everything the node agent and ``metalmesh node netns`` need to know."""

    node_name: str
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster_id: str = DEFAULT_CLUSTER_ID
    #: name of the network this node is in
    network: str = ""
    #: ``host:port`` of the control plane; empty: the node lives on its last good state
    xds_address: str = ""
    #: name the control plane's certificate must carry; empty: the host of ``xds_address``
    server_name: str = ""
    root_cert_path: Path = Path(ROOT_CERT_PATH)
    token_path: Path = Path(NODE_TOKEN_PATH)
    join_token_path: Path = Path("/var/lib/metalmesh/node/join-token")
    workloads_dir: Path = Path(WORKLOADS_DIR)
    zds_socket: Path = Path(ZDS_SOCKET)
    ztunnel_group: str = "metalmesh-ztunnel"
    #: group that may read the node token (ztunnel and node agent share it)
    token_group: str = "metalmesh"  # noqa: S105 - a group, not a secret
    dns_address: IPv4Address = _DNS_ADDRESS
    #: empty: the nameservers of ``resolv_conf`` (else /etc/resolv.conf), less ``dns_address``
    dns_upstreams: tuple[str, ...] = ()
    resolv_conf: Path = Path("/etc/metalmesh/resolv.conf")
    service_cidr: IPv4Network = _SERVICE_CIDR
    ipv6: bool = True
    dns_capture: bool = False
    #: what the capture of every workload leaves alone, as the workloads' own annotations say it
    exclude_inbound_ports: str = ""
    exclude_outbound_ports: str = ""
    exclude_outbound_cidrs: str = ""
    #: where sshd listens: never captured in the machine's own namespace
    ssh_ports: str = "22"
    #: seconds; one workload is looked at per interval, and at once when the kernel reports a change
    reconcile_interval_seconds: float = 2.0
    port: int = PORT_NODE_AGENT
    #: survives a reboot: last good policies, services, nodes
    state_dir: Path = Path("/var/lib/metalmesh/node")
    #: gone after a reboot, as the namespaces are
    run_dir: Path = Path("/run/metalmesh/node")
    log_level: str = "info"
    log_format: str = field(default="plain")

    @property
    def exclusions(self) -> Exclusions:
        """What the capture of every workload leaves alone."""
        return Exclusions(
            inbound_ports=parse_ports(self.exclude_inbound_ports),
            outbound_ports=parse_ports(self.exclude_outbound_ports),
            outbound_cidrs=parse_networks(self.exclude_outbound_cidrs),
        )

    @property
    def host_exclusions(self) -> Exclusions:
        """What keeps the machine within reach, whatever else is excluded or not."""
        ssh = parse_ports(self.ssh_ports)
        control_plane = {PORT_XDS, int(self.xds_address.rpartition(":")[2] or PORT_XDS)}
        return Exclusions(
            inbound_ports=merge_ports(
                (*ssh, *((port, port) for port in (*_OWN_PORTS, self.port) if port))
            ),
            outbound_ports=merge_ports((*ssh, *((port, port) for port in control_plane))),
        )


def parse_config(mapping: Mapping[str, Any], source: str) -> NodeConfig:
    """Build the configuration from parsed YAML; an unknown key or a wrong value is an error."""
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, got {mapping!r}")
    if mapping.get("component") != COMPONENT:
        raise ConfigError(
            f"{source}: component is {mapping.get('component')!r}, expected {COMPONENT!r}"
        )
    known = {item.name: item for item in fields(NodeConfig)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key == "component":
            continue
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}; known are {', '.join(known)}")
        values[key] = _convert(source, key, value, str(known[key].type))
    missing = [
        name for name, item in known.items() if item.default is MISSING and name not in values
    ]
    if missing:
        raise ConfigError(f"{source}: {', '.join(missing)} must be set")
    return _checked(NodeConfig(**values), source)


def _convert(source: str, key: str, value: Any, kind: str) -> Any:
    try:
        return _CONVERTERS[kind](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {key}: {value!r} is not valid: {error}") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def _path(value: Any) -> Path:
    path = Path(_string(value))
    if not path.is_absolute():
        raise ValueError("expected an absolute path")
    return path


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise TypeError("expected a port, 0 to 65535")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 3600:
        raise TypeError("expected seconds, 0.1 to 3600")
    return float(value)


def _nameservers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("expected a list of addresses")
    return tuple(str(ip_address(_string(item))) for item in value)


def _ipv4_network(value: Any) -> IPv4Network:
    network = ip_network(_string(value))
    if not isinstance(network, IPv4Network):
        raise TypeError("expected an IPv4 network")
    return network


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "str": _string,
    "bool": _boolean,
    "int": _port,
    "float": _seconds,
    "Path": _path,
    "IPv4Address": lambda value: IPv4Address(_string(value)),
    "IPv4Network": _ipv4_network,
    "tuple[str, ...]": _nameservers,
}


_EXCLUSIONS: Final[dict[str, Callable[[str], object]]] = {
    "exclude_inbound_ports": parse_ports,
    "exclude_outbound_ports": parse_ports,
    "exclude_outbound_cidrs": parse_networks,
    "ssh_ports": parse_ports,
}


def _checked(config: NodeConfig, source: str) -> NodeConfig:
    host, colon, port = config.xds_address.rpartition(":")
    if config.xds_address and not (host and colon and port.isdigit()):
        raise ConfigError(
            f"{source}: xds_address {config.xds_address!r} must be HOST:PORT, e.g. 10.77.0.10:15012"
        )
    for key, parse in _EXCLUSIONS.items():
        try:
            parse(getattr(config, key))
        except ValueError as error:
            raise ConfigError(f"{source}: {key}: {error}") from None
    if not parse_ports(config.ssh_ports):
        raise ConfigError(f"{source}: ssh_ports must not be empty: it keeps the machine reachable")
    if not config.node_name:
        raise ConfigError(f"{source}: node_name must not be empty")
    return config
