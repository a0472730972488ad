"""What the CA signs with, served beside what is computed from the resources."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from metalmesh.constants import TYPE_AUTHORITY
from metalmesh.controlplane.snapshot import Snapshot, served_resource
from metalmesh.xds.node import AUTHORITY_NAME, encode_authority

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.model.identity import SignedBy


class AnnouncedSnapshot:
    """Calling it gives the snapshot to serve; the same one as long as neither part changes."""

    def __init__(self, computed: Callable[[], Snapshot], authority: Callable[[], SignedBy]) -> None:
        self._computed = computed
        self._authority = authority
        self._parts: tuple[Snapshot, SignedBy] | None = None
        self._snapshot = Snapshot()

    def __call__(self) -> Snapshot:
        computed, authority = self._computed(), self._authority()
        if self._parts is None or computed is not self._parts[0] or authority != self._parts[1]:
            self._parts = (computed, authority)
            resource = served_resource(AUTHORITY_NAME, encode_authority(authority))
            types = {**computed.types, TYPE_AUTHORITY: {AUTHORITY_NAME: resource}}
            self._snapshot = Snapshot(MappingProxyType(types))
        return self._snapshot
