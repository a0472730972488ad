"""Configuration of the control plane (``/etc/metalmesh/controlplane.yaml``); pure parsing."""

from __future__ import annotations

import difflib
import ipaddress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import (
    DEFAULT_CLUSTER_DOMAIN,
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    NODE_TOKEN_TTL_SECONDS,
    PORT_CONTROL_PLANE_METRICS,
    PORT_XDS,
    ROOT_NAMESPACE,
    STATE_DIR,
    STORE_DIR,
    SVID_MAX_TTL_SECONDS,
    SVID_TTL_SECONDS,
)
from metalmesh.controlplane.compute import ComputeOptions
from metalmesh.errors import ConfigError, IdentityError
from metalmesh.model.compat import NOTHING, Deviation, parse_istio_compat
from metalmesh.model.identity import check_trust_domain
from metalmesh.model.resources.service import DISTRIBUTIONS
from metalmesh.policy.trust_domains import TrustDomains
from metalmesh.render.wds import MeshOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from metalmesh.model.authorization import IPNetwork

COMPONENT: Final = "controlplane"
_YEAR_SECONDS: Final = 365 * 24 * 3600
_SERVICE_CIDRS: Final = (ipaddress.ip_network("10.96.0.0/16"),)
#: Istio's: reserved or for benchmarks, so nobody's own
_SERVICE_ENTRY_CIDRS: Final = (
    ipaddress.ip_network("240.240.0.0/16"),
    ipaddress.ip_network("2001:2::/48"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlaneConfig:
    """Everything the control plane needs to know."""

    #: names and addresses of its serving certificate: what nodes dial
    server_names: tuple[str, ...]
    #: address of every listener; ``::`` is every IPv4 and IPv6 address
    listen_address: str = "::"
    port: int = PORT_XDS
    metrics_port: int = PORT_CONTROL_PLANE_METRICS
    store_dir: Path = Path(STORE_DIR)
    #: root-cert.pem, issuing-cert.pem, issuing-key.pem (or a systemd credential of that name)
    ca_dir: Path = Path("/etc/metalmesh/ca")
    tokens_dir: Path = Path(STATE_DIR) / "tokens"
    #: last good objects, allocated service addresses, token key, status
    state_dir: Path = Path(STATE_DIR) / COMPONENT
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    #: other names of it, which policies and peers may use (Istio's ``trustDomainAliases``)
    trust_domain_aliases: tuple[str, ...] = ()
    cluster_id: str = DEFAULT_CLUSTER_ID
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    root_namespace: str = ROOT_NAMESPACE
    #: name of the network that workloads are in unless they name one
    network: str = ""
    #: ranges for services that do not name a clusterIP; one per family at most
    service_cidrs: tuple[IPNetwork, ...] = _SERVICE_CIDRS
    #: ranges for hosts of ServiceEntries that name no address; one per family at most
    service_entry_cidrs: tuple[IPNetwork, ...] = _SERVICE_ENTRY_CIDRS
    #: trafficDistribution of services that choose none; "" is every endpoint alike
    traffic_distribution: str = ""
    #: what is done as Istio does it (docs/beyond-istio.md)
    istio_compat: frozenset[Deviation] = NOTHING
    svid_ttl_seconds: int = SVID_TTL_SECONDS
    svid_max_ttl_seconds: int = SVID_MAX_TTL_SECONDS
    node_token_ttl_seconds: int = NODE_TOKEN_TTL_SECONDS
    log_level: str = "info"
    log_format: str = "plain"

    @property
    def compute_options(self) -> ComputeOptions:
        """What computation needs of it."""
        return ComputeOptions(
            mesh=MeshOptions(
                cluster_id=self.cluster_id,
                cluster_domain=self.cluster_domain,
                trust_domain=self.trust_domain,
                root_namespace=self.root_namespace,
                network=self.network,
                traffic_distribution=self.traffic_distribution,
            ),
            service_cidrs=self.service_cidrs,
            service_entry_cidrs=self.service_entry_cidrs,
            compat=self.istio_compat,
            trust_domains=TrustDomains(self.trust_domain, self.trust_domain_aliases),
        )


def parse_config(mapping: Mapping[str, Any], source: str) -> ControlPlaneConfig:
    """Build the configuration; an unknown key or a wrong value is an error that names it."""
    if mapping.get("component") != COMPONENT:
        raise ConfigError(
            f"{source}: component: is {mapping.get('component')!r}, expected {COMPONENT!r}"
        )
    known = {item.name: item for item in fields(ControlPlaneConfig)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key == "component":
            continue
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"{source}: {key}: unknown key; {hint}")
        try:
            values[key] = _CONVERTERS[str(known[key].type)](value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{source}: {key}: {error}, got {value!r}") from None
    missing = [
        name for name, item in known.items() if item.default is MISSING and name not in values
    ]
    if missing:
        raise ConfigError(f"{source}: {', '.join(missing)}: must be set")
    config = ControlPlaneConfig(**values)
    _check(config, source)
    return config


def _check(config: ControlPlaneConfig, source: str) -> None:
    if not config.server_names:
        raise ConfigError(f"{source}: server_names: must not be empty; name what nodes dial")
    for name in ("svid_ttl_seconds", "svid_max_ttl_seconds", "node_token_ttl_seconds"):
        if not 60 <= getattr(config, name) <= _YEAR_SECONDS:
            raise ConfigError(f"{source}: {name}: must be 60 to {_YEAR_SECONDS} seconds")
    if config.svid_ttl_seconds > config.svid_max_ttl_seconds:
        raise ConfigError(f"{source}: svid_ttl_seconds: must not exceed svid_max_ttl_seconds")
    if config.traffic_distribution not in ("", "Any", *DISTRIBUTIONS):
        known = ", ".join(("Any", *DISTRIBUTIONS))
        raise ConfigError(f"{source}: traffic_distribution: must be empty or one of {known}")
    for name in ("service_cidrs", "service_entry_cidrs"):
        families = [network.version for network in getattr(config, name)]
        if len(families) > len(set(families)):
            raise ConfigError(f"{source}: {name}: one network per family at most")
    for name in ("port", "metrics_port"):
        if not 0 <= getattr(config, name) <= 65535:
            raise ConfigError(f"{source}: {name}: must be 0 to 65535")
    try:
        for name in config.trust_domain_aliases:
            check_trust_domain(name)
    except IdentityError as error:
        raise ConfigError(f"{source}: trust_domain_aliases: {error}") from None
    try:
        ipaddress.ip_address(config.listen_address)
    except ValueError as error:
        raise ConfigError(f"{source}: listen_address: {error}") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("must be an integer")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be true or false")
    return value


def _path(value: Any) -> Path:
    path = Path(_string(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("must be a list of strings")
    return tuple(map(_string, value))


def _networks(value: Any) -> tuple[IPNetwork, ...]:
    return tuple(map(ipaddress.ip_network, _strings(value)))


_CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "str": _string,
    "int": _integer,
    "bool": _boolean,
    "Path": _path,
    "tuple[str, ...]": _strings,
    "tuple[IPNetwork, ...]": _networks,
    "frozenset[Deviation]": parse_istio_compat,
}
