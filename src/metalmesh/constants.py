"""Ports, marks, names and limits of the mesh: one fact, one place.

Numbers are Istio's own wherever Istio has them (ztunnel, istio-cni), so that each component can
stand beside the real one. Units are in the name; marks are always used with ``MARK_MASK``.
"""

from __future__ import annotations

from typing import Final

# --- ports (TCP unless said otherwise) -------------------------------------------------------
PORT_ZTUNNEL_ADMIN: Final = 15000
PORT_OUTBOUND: Final = 15001
PORT_INBOUND_PLAINTEXT: Final = 15006
PORT_HBONE: Final = 15008
PORT_XDS: Final = 15012
PORT_CONTROL_PLANE_METRICS: Final = 15014
PORT_METRICS: Final = 15020
PORT_READINESS: Final = 15021
PORT_DNS: Final = 15053
#: metrics, readiness and debug of the node agent (Istio's istio-cni agent shares 15014 with
#: istiod; both can run on one of our nodes, so the node agent has its own port).
PORT_NODE_AGENT: Final = 15016

#: destinations a proxy must never dial, or it would talk to itself (istio-facts 1.1).
ILLEGAL_PORTS: Final = frozenset({PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE})

# --- marks and routing -----------------------------------------------------------------------
MARK_MASK: Final = 0xFFF
#: SO_MARK of every socket a proxy makes in a workload's netns (1337).
MARK_FROM_PROXY: Final = 0x539
#: connection mark of flows the proxy opened towards the application, restored on replies.
MARK_TRACKED: Final = 0x111
ROUTE_TABLE: Final = 100
RULE_PRIORITY: Final = 32764
DNS_CONNTRACK_ZONE: Final = 1

#: source address of node-local health probes; exempt from inbound capture.
PROBE_SNAT_IPV4: Final = "169.254.7.127"
PROBE_SNAT_IPV6: Final = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
PROBE_SET_IPV4: Final = "istio-inpod-probes-v4"
PROBE_SET_IPV6: Final = "istio-inpod-probes-v6"

# --- nftables --------------------------------------------------------------------------------
TABLE_NAT: Final = "istio-ambient-nat"
TABLE_MANGLE: Final = "istio-ambient-mangle"
TABLE_RAW: Final = "istio-ambient-raw"
TABLE_POLICY: Final = "metalmesh-policy"
TABLE_SERVICES: Final = "metalmesh-services"

#: capture in the machine's own namespace, where the node's tables have the other names
TABLE_HOST_NAT: Final = "istio-ambient-host-nat"
TABLE_HOST_MANGLE: Final = "istio-ambient-host-mangle"

#: host-side veth of a workload: this and 8 hex digits of its netns name's SHA-256
LINK_PREFIX: Final = "mmw"

# --- names -----------------------------------------------------------------------------------
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"
DEFAULT_CLUSTER_ID: Final = "Kubernetes"
DEFAULT_CLUSTER_DOMAIN: Final = "cluster.local"
ROOT_NAMESPACE: Final = "istio-system"
STRICT_POLICY_NAME: Final = "istio_converted_static_strict"

LABEL_DATAPLANE_MODE: Final = "istio.io/dataplane-mode"
#: ``http``: the workload itself speaks HBONE
LABEL_TUNNEL: Final = "networking.istio.io/tunnel"
ANNOTATION_REDIRECTION: Final = "ambient.istio.io/redirection"
ANNOTATION_DNS_CAPTURE: Final = "ambient.istio.io/dns-capture"
ANNOTATION_BYPASS_INBOUND: Final = "ambient.istio.io/bypass-inbound-capture"
#: how the node agent finds out whether a workload is well (a WorkloadGroup's ``probe`` as YAML)
ANNOTATION_PROBE: Final = "ambient.metalmesh.io/probe"
#: name of the node a WorkloadEntry is placed on; the CA signs only for that node.
ANNOTATION_NODE: Final = "ambient.metalmesh.io/node"
#: network namespace of the workload on its node (``host`` for the machine's own).
ANNOTATION_NETNS: Final = "ambient.metalmesh.io/netns"
#: the value of ``ANNOTATION_NETNS`` that means the machine's own namespace
HOST_NETNS: Final = "host"
#: what capture leaves alone: ports and ranges, destinations
ANNOTATION_EXCLUDE_INBOUND_PORTS: Final = "ambient.metalmesh.io/exclude-inbound-ports"
ANNOTATION_EXCLUDE_OUTBOUND_PORTS: Final = "ambient.metalmesh.io/exclude-outbound-ports"
ANNOTATION_EXCLUDE_OUTBOUND_CIDRS: Final = "ambient.metalmesh.io/exclude-outbound-cidrs"

TYPE_ADDRESS: Final = "type.googleapis.com/istio.workload.Address"
TYPE_AUTHORIZATION: Final = "type.googleapis.com/istio.security.Authorization"
TYPE_NODE: Final = "type.googleapis.com/metalmesh.node.v1.Node"
TYPE_AUTHORITY: Final = "type.googleapis.com/metalmesh.node.v1.Authority"
TYPE_NETWORK_POLICY: Final = "type.googleapis.com/metalmesh.node.v1.NetworkPolicy"

# --- paths (on nodes) ------------------------------------------------------------------------
CONFIG_DIR: Final = "/etc/metalmesh"
STATE_DIR: Final = "/var/lib/metalmesh"
RUN_DIR: Final = "/run/metalmesh"
ZDS_SOCKET: Final = "/run/ztunnel/ztunnel.sock"
HANDOVER_SOCKET: Final = "/run/metalmesh/ztunnel/handover.sock"
ROOT_CERT_PATH: Final = "/etc/metalmesh/root-cert.pem"
NODE_TOKEN_PATH: Final = "/var/lib/metalmesh/node/token"  # noqa: S105 - a path, not a secret
WORKLOADS_DIR: Final = "/etc/metalmesh/workloads"
STORE_DIR: Final = "/var/lib/metalmesh/store"

# --- HBONE limits (ztunnel's defaults, istio-facts 2.4 and 2.6) --------------------------------
CONNECT_TIMEOUT_SECONDS: Final = 10.0
PING_INTERVAL_SECONDS: Final = 10.0
PING_TIMEOUT_SECONDS: Final = 20.0
POOL_MAX_STREAMS: Final = 100
#: connections of one key from which on new streams share even a blocked one (ours, not Istio's)
POOL_MAX_BLOCKED: Final = 4
POOL_IDLE_RELEASE_SECONDS: Final = 300.0
SERVER_MAX_STREAMS: Final = 200
WORKLOAD_INFO_TIMEOUT_SECONDS: Final = 5.0

# --- identity --------------------------------------------------------------------------------
SVID_TTL_SECONDS: Final = 24 * 3600
SVID_MAX_TTL_SECONDS: Final = 90 * 24 * 3600
SVID_BACKDATE_SECONDS: Final = 120
JOIN_TOKEN_TTL_SECONDS: Final = 3600
NODE_TOKEN_TTL_SECONDS: Final = 12 * 3600
TOKEN_AUDIENCE: Final = "istio-ca"  # noqa: S105 - a claim, not a secret
