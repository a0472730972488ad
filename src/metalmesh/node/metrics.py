"""Metrics of the node agent (port 15016, prefix ``metalmesh_node_``)."""

from __future__ import annotations

from metalmesh.service.metrics import Registry


class NodeMetrics:
    """Every family, registered once."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry or Registry()
        gauge, counter = self.registry.gauge, self.registry.counter
        self.workloads = gauge(
            "metalmesh_node_workloads", "Workloads of this node by state", ("state",)
        )
        self.spec_errors = gauge(
            "metalmesh_node_workload_spec_errors", "Workload files that cannot be used"
        )
        self.ztunnels = gauge("ztunnel_connected", "Ztunnels connected over ZDS")
        self.zds_requests = counter(
            "metalmesh_node_zds_requests_total", "ZDS requests by their end", ("result",)
        )
        self.repairs = counter(
            "metalmesh_node_drift_repairs_total",
            "Times something of ours had been changed by somebody else and was put back",
            ("object",),
        )
        self.network_errors = counter(
            "metalmesh_node_network_errors_total",
            "Failed attempts to put a workload's network or the node's tables in force",
            ("object",),
        )
        self.cut_offs = counter(
            "metalmesh_node_cut_offs_total",
            "Times a workload lost its network because it could not be captured",
            ("uid",),
        )
        self._declare_tables()
        self._declare_dns_and_token()

    def _declare_tables(self) -> None:
        gauge = self.registry.gauge
        self.policies = gauge("metalmesh_node_network_policies", "NetworkPolicies in force")
        self.services = gauge("metalmesh_node_services", "Services with virtual addresses")
        self.apply_seconds = self.registry.histogram(
            "metalmesh_node_table_apply_seconds",
            "Time to put a changed table in force, in seconds",
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
            ("table",),
        )

    def _declare_dns_and_token(self) -> None:
        gauge, counter = self.registry.gauge, self.registry.counter
        self.dns_queries = counter(
            "metalmesh_node_dns_queries_total",
            "DNS queries by how they were answered",
            ("result",),
        )
        self.probes = counter(
            "metalmesh_node_probe_total", "Health probes by workload and result", ("uid", "result")
        )
        self.unhealthy = gauge(
            "metalmesh_node_unhealthy_workloads", "Workloads that are out of their services now"
        )
        self.token_expiry = gauge(
            "metalmesh_node_token_expiry_timestamp_seconds", "End of the node token, unix time"
        )
        self.token_renewals = counter(
            "metalmesh_node_token_renewals_total", "Attempts to renew the node token", ("result",)
        )
