"""Configuration of the ztunnel: ``/etc/metalmesh/ztunnel.yaml``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from metalmesh.constants import (
    DEFAULT_CLUSTER_DOMAIN,
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    HANDOVER_SOCKET,
    NODE_TOKEN_PATH,
    PORT_XDS,
    ROOT_CERT_PATH,
    STATE_DIR,
    SVID_TTL_SECONDS,
    ZDS_SOCKET,
)
from metalmesh.errors import ConfigError, IdentityError
from metalmesh.model.compat import NOTHING, Deviation, parse_istio_compat
from metalmesh.model.identity import check_trust_domain

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPONENT: Final = "ztunnel"
MAX_WORKERS: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ZtunnelConfig:
    """Settings of one node's ztunnel; durations in seconds."""

    node_name: str
    #: ``host:port`` of the control plane's xDS; "" runs from the last good state alone
    xds_address: str
    #: workloads, services and policies in ztunnel's own format, beside or instead of xDS; for
    #: tests and labs
    local_xds_path: str = ""
    #: ``host:port`` of the CA; "" is ``xds_address``
    ca_address: str = ""
    #: how the CA is verified and told who we are; "": as the control plane
    ca_root_cert_path: str = ""
    ca_token_path: str = ""
    ca_server_name: str = ""
    #: name in the control plane's certificate; "" is the host of its address
    server_name: str = ""
    cluster_id: str = DEFAULT_CLUSTER_ID
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    #: other names of it that peers' certificates may carry
    trust_domain_aliases: tuple[str, ...] = ()
    #: name of the network this node is in
    network: str = ""
    root_cert_path: str = ROOT_CERT_PATH
    #: revocation lists, PEM or DER; "" knows of none
    crl_path: str = ""
    token_path: str = NODE_TOKEN_PATH
    zds_socket: str = ZDS_SOCKET
    #: where a main process waits for its successor (``metalmesh ztunnel reload``)
    handover_socket: str = HANDOVER_SOCKET
    #: where the last good state is kept
    state_dir: str = f"{STATE_DIR}/ztunnel"
    workers: int = 2
    #: how long connections may go on when the service stops
    stop_deadline_seconds: float = 25
    #: how long they may go on in old workers after a reload or restart; 0: until they end
    drain_deadline_seconds: float = 0
    #: answer captured DNS (port 15053 of each workload's namespace)
    dns_proxy: bool = True
    #: nameservers for what is no service; empty: those of ``resolv_conf`` but loopback ones
    dns_upstreams: tuple[str, ...] = ()
    resolv_conf: str = "/etc/resolv.conf"
    #: hold NetworkPolicy port rules inside HBONE too
    network_policy_inner_enforcement: bool = True
    #: what is done as Istio does it (docs/beyond-istio.md)
    istio_compat: frozenset[Deviation] = NOTHING
    #: life asked of the CA for workload certificates
    secret_ttl_seconds: int = SVID_TTL_SECONDS
    #: path of the SPIFFE Workload API; "" does not serve it
    workload_api_socket: str = ""
    log_level: str = "info"
    log_format: str = "plain"
    access_log: bool = True
    #: what policies had to say about a connection is logged at info instead of debug
    #: (Istio's AUTHZ_POLICY_INFO_LOGGING)
    authz_policy_info_logging: bool = False
    #: TLS secrets for wire captures; only where METALMESH_LAB=1
    tls_keylog_path: str = ""


def parse_config(
    values: Mapping[str, Any], source: str, environ: Mapping[str, str]
) -> ZtunnelConfig:
    """Check a parsed YAML mapping; raise :class:`ConfigError` naming key and file."""
    component = values.get("component")
    if component != COMPONENT:
        raise ConfigError(f"{source}: component: must be {COMPONENT!r}, is {component!r}")
    given = {key: value for key, value in values.items() if key != "component"}
    known = {entry.name: entry for entry in fields(ZtunnelConfig)}
    unknown = sorted(str(key) for key in given.keys() - known.keys())
    if unknown:
        raise ConfigError(
            f"{source}: {unknown[0]}: unknown key; the keys are {', '.join(sorted(known))}"
        )
    for name, entry in known.items():
        if entry.default is MISSING and name not in given:
            raise ConfigError(f"{source}: {name}: is missing")
    hints = get_type_hints(ZtunnelConfig)
    config = ZtunnelConfig(
        **{key: _typed(hints[key], value, f"{source}: {key}") for key, value in given.items()}
    )
    _check(config, source, environ)
    return config


def _typed(kind: type, value: Any, where: str) -> Any:
    """Strict types: YAML's ``yes`` is no text and ``"2"`` is no number."""
    if kind == frozenset[Deviation]:
        try:
            return parse_istio_compat(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}, is {value!r}") from None
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: must be a list of texts, is {value!r}")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where}: must be {names[kind]}, is {value!r}")
    return value


def _check(config: ZtunnelConfig, source: str, environ: Mapping[str, str]) -> None:
    def refuse(key: str, text: str) -> None:
        raise ConfigError(f"{source}: {key}: {text}")

    if not config.node_name:
        refuse("node_name", "is empty; give the name the control plane knows this node by")
    for key in ("xds_address", "ca_address"):
        address = getattr(config, key)
        host, _, port = address.rpartition(":")
        if address and not (host and port.isdigit() and 0 < int(port) < 65536):
            refuse(key, f"{address!r} is not HOST:PORT, such as cp1.example.org:{PORT_XDS}")
    for name in config.trust_domain_aliases:
        try:
            check_trust_domain(name)
        except IdentityError as error:
            refuse("trust_domain_aliases", str(error))
    for address in config.dns_upstreams:
        try:
            ip_address(address)
        except ValueError:
            refuse("dns_upstreams", f"{address!r} is not the address of a nameserver")
    if not 1 <= config.workers <= MAX_WORKERS:
        refuse("workers", f"must be 1 to {MAX_WORKERS}, is {config.workers}")
    for key in ("stop_deadline_seconds", "drain_deadline_seconds"):
        if getattr(config, key) < 0:
            refuse(key, f"must not be negative: {getattr(config, key):g}")
    if config.secret_ttl_seconds < 60:
        refuse("secret_ttl_seconds", f"must be at least 60, is {config.secret_ttl_seconds}")
    if config.tls_keylog_path and environ.get("METALMESH_LAB") != "1":
        refuse(
            "tls_keylog_path",
            "writes the secrets of every connection; refused unless METALMESH_LAB=1 is set",
        )
