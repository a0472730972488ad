"""Metrics of the control plane (port 15014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from metalmesh.service.metrics import Registry

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


class ControlPlaneMetrics:
    """Every family, declared once. ``pilot_xds`` keeps Istio's name so that dashboards work."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._declare_store(registry, "metalmesh_controlplane")
        self._declare_xds(registry, "metalmesh_controlplane")
        self._declare_identities(registry, "metalmesh_controlplane")

    def _declare_store(self, registry: Registry, prefix: str) -> None:
        self.objects = registry.gauge(f"{prefix}_objects", "Objects in force", ("kind",))
        self.refused = registry.gauge(
            f"{prefix}_object_errors", "Errors of objects and files in the store"
        )
        self.outdated = registry.gauge(
            f"{prefix}_objects_outdated", "Objects served in their last good version"
        )
        self.unreadable = registry.gauge(
            f"{prefix}_store_unreadable", "Files and directories of the store that cannot be read"
        )
        self.scans = registry.counter(f"{prefix}_store_scans_total", "Readings of the store")
        self.update_seconds = registry.histogram(
            f"{prefix}_update_seconds", "Time from noticing a change to having it computed",
            _SECONDS,
        )  # fmt: skip
        self.state_failures = registry.counter(
            f"{prefix}_state_write_failures_total", "Failed writes of the state directory"
        )

    def _declare_xds(self, registry: Registry, prefix: str) -> None:
        self.streams = registry.gauge("pilot_xds", "Clients connected by xDS", ("kind",))
        self.pushes = registry.counter(
            f"{prefix}_xds_pushes_total", "xDS responses sent", ("type_url",)
        )
        self.push_bytes = registry.counter(
            f"{prefix}_xds_push_bytes_total", "Bytes of xDS responses sent", ("type_url",)
        )
        self.acks = registry.counter(
            f"{prefix}_xds_acks_total", "Responses accepted by clients", ("type_url",)
        )
        self.nacks = registry.counter(
            f"{prefix}_xds_nacks_total", "Responses refused, in part at least", ("type_url",)
        )

    def _declare_identities(self, registry: Registry, prefix: str) -> None:
        self.authentication_failures = registry.counter(
            f"{prefix}_authentication_failures_total", "Calls without a valid node token"
        )
        self.certificates = registry.counter(
            f"{prefix}_certificates_total", "Signing requests by outcome", ("result",)
        )
        self.joins = registry.counter(f"{prefix}_joins_total", "Joins by outcome", ("result",))
        self.renewals = registry.counter(f"{prefix}_renewals_total", "Renewed node tokens")
        self.health_reports = registry.counter(
            f"{prefix}_health_reports_total", "Reports of nodes about their workloads' health"
        )
        self.certificate_expiry = registry.gauge(
            f"{prefix}_certificate_expiry_timestamp_seconds",
            "When certificates expire, in unix seconds",
            ("certificate",),
        )
        self.ca_reload_failures = registry.counter(
            f"{prefix}_ca_reload_failures_total", "Failed readings of a changed CA directory"
        )
