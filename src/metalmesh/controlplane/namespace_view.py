"""What the workloads of one namespace are rendered with: its services and policies; pure."""

from __future__ import annotations

from dataclasses import replace
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
        WorkloadEntry,
    )
    from metalmesh.model.workload import Locality
    from metalmesh.policy.translate import Translation
    from metalmesh.render.wds import Backend, MeshOptions


class NamespaceView:
    """Services and policies that can select a workload of one namespace."""

    def __init__(
        self,
        namespace: str,
        labels: Mapping[str, str],
        mesh: MeshOptions,
        backends: Iterable[Backend],
        policies: Iterable[AuthorizationPolicy],
        peers: Sequence[PeerAuthentication],
        translations: Mapping[str, Translation],
    ) -> None:
        self._namespace = namespace
        self._labels = labels
        self._mesh = mesh
        # without a selector it has no workloads of ours
        self._backends = SelectorIndex((item.selector, item) for item in backends if item.selector)
        self._policies = SelectorIndex(
            (item.selector.match_labels, item.meta.key)
            for item in policies
            if item.selector is not None
            and not item.selector.empty
            and translations[item.meta.key].authorization is not None
        )
        self._peers = peers

    def serve(
        self, entry: WorkloadEntry, node_locality: Locality, *, healthy: bool = True
    ) -> ServedResource:
        """Render one workload; it is where its node is, unless it says otherwise."""
        keys = sorted(self._policies.select(entry.labels))
        keys += peer_authentication_keys(
            self._peers, self._mesh.root_namespace, self._namespace, entry.labels
        )
        backends = self._backends.select(entry.labels)
        workload = render_workload(entry, self._labels, backends, keys, self._mesh, node_locality)
        workload = replace(workload, healthy=healthy)
        return served_resource(
            workload.uid,
            encode_address(workload),
            address_aliases(workload),
            tuple(workload.services),
        )
