"""Who this ztunnel is to the control plane, and how it gets there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh import __version__, constants
from metalmesh.errors import ConfigError
from metalmesh.service.channel import ControlPlane
from metalmesh.service.dns import Upstreams
from metalmesh.xds.delta_client import NodeInfo
from metalmesh.xds.local import LocalMesh, parse_local

if TYPE_CHECKING:
    from metalmesh.ztunnel.config import ZtunnelConfig

#: what the machine had before the node agent became its nameserver
_RESOLV_CONF_BEFORE: Final = Path(constants.CONFIG_DIR) / "resolv.conf"


def control_plane(config: ZtunnelConfig, address: str) -> ControlPlane:
    """How to reach ``address``, which serves xDS or signs certificates."""
    return ControlPlane(
        address=address,
        root_cert_path=config.root_cert_path,
        token_path=config.token_path,
        cluster_id=config.cluster_id,
        server_name=config.server_name,
    )


def certificate_authority(config: ZtunnelConfig) -> ControlPlane:
    """How to reach the CA: the control plane, or any server of Istio's CA API."""
    own = control_plane(config, config.ca_address or config.xds_address)
    return replace(
        own,
        root_cert_path=config.ca_root_cert_path or own.root_cert_path,
        token_path=config.ca_token_path or own.token_path,
        server_name=config.ca_server_name or ("" if external_ca(config) else own.server_name),
    )


def external_ca(config: ZtunnelConfig) -> bool:
    """Whether somebody else than the control plane signs."""
    return config.ca_address not in ("", config.xds_address)


def read_local(path: str) -> LocalMesh:
    """What the local file says; nothing without one."""
    if not path:
        return LocalMesh()
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"local_xds_path: {path}: cannot be read: {error}") from error
    return parse_local(text, path)


def node_info(config: ZtunnelConfig) -> NodeInfo:
    """``ztunnel~IP~NAME.NAMESPACE~DOMAIN`` (istio-facts 3.2); the address plays no role."""
    namespace = constants.ROOT_NAMESPACE
    name = f"ztunnel-{config.node_name}"
    domain = f"{namespace}.svc.{config.cluster_domain}"
    return NodeInfo(
        id=f"ztunnel~1.1.1.1~{name}.{namespace}~{domain}",
        metadata={
            "NAME": name,
            "NAMESPACE": namespace,
            "NODE_NAME": config.node_name,
            "CLUSTER_ID": config.cluster_id,
            "ISTIO_VERSION": __version__,
        },
    )


def endpoint_nameservers(config: ZtunnelConfig) -> Upstreams:
    """Who knows the names of endpoints: the outside's nameservers.

    The node agent's own one would answer such a name with the address of the service.
    """
    path = Path(config.resolv_conf)
    if path == Path("/etc/resolv.conf") and _RESOLV_CONF_BEFORE.exists():
        path = _RESOLV_CONF_BEFORE
    return Upstreams(config.dns_upstreams, path, lambda _: False)
