"""What the workloads of one namespace are rendered with: its services and policies; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.controlplane.snapshot import ServedResource, served_resource
from metalmesh.policy.peer_authentication import peer_authentication_keys
from metalmesh.render.selectors import SelectorIndex
from metalmesh.render.wds import render_workload
from metalmesh.xds.wds import address_aliases, encode_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metalmesh.model.resources import (
        AuthorizationPolicy,
        PeerAuthentication,
        ServiceResource,
        WorkloadEntry,
    )
    from metalmesh.policy.translate import Translation
    from metalmesh.render.wds import MeshOptions


class NamespaceView:
    """Services and policies that can select a workload of one namespace."""

    def __init__(
        self,
        namespace: str,
        labels: Mapping[str, str],
        mesh: MeshOptions,
        services: Iterable[ServiceResource],
        policies: Iterable[AuthorizationPolicy],
        peers: Sequence[PeerAuthentication],
        translations: Mapping[str, Translation],
    ) -> None:
        self._namespace = namespace
        self._labels = labels
        self._mesh = mesh
        # a service without a selector has no workloads of ours
        self._services = SelectorIndex((item.selector, item) for item in services if item.selector)
        self._policies = SelectorIndex(
            (item.selector.match_labels, item.meta.key)
            for item in policies
            if item.selector is not None
            and not item.selector.empty
            and translations[item.meta.key].authorization is not None
        )
        self._peers = peers

    def serve(self, entry: WorkloadEntry) -> ServedResource:
        """Render one workload."""
        keys = sorted(self._policies.select(entry.labels))
        keys += peer_authentication_keys(
            self._peers, self._mesh.root_namespace, self._namespace, entry.labels
        )
        services = self._services.select(entry.labels)
        workload = render_workload(entry, self._labels, services, keys, self._mesh)
        return served_resource(
            workload.uid,
            encode_address(workload),
            address_aliases(workload),
            tuple(workload.services),
        )
