"""The mesh's nft tables in the node's own namespace: NetworkPolicy, services, probes.

Shared by the agent and by ``metalmesh node netns up``, which must have a workload's policies in
force before its link is up. The caller holds the node's lock.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from metalmesh.constants import TABLE_POLICY
from metalmesh.errors import StoreError
from metalmesh.net import nft
from metalmesh.render.network_policy import BoundWorkload, render_network_policy
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.node.state import NetnsRecord, NodeState, PolicyState

log = Log("metalmesh.node.tables")


def ensure_policy_table(
    state: NodeState, records: Iterable[NetnsRecord], received: PolicyState | None = None
) -> list[str]:
    """Put policies in force for these workloads: those received, else the last good ones."""
    policies = received or _last_good(state)
    known = policies.known_uids if policies is not None else frozenset()
    workloads = [
        BoundWorkload(
            uid=record.uid,
            link=record.link,
            addresses=record.ip_addresses,
            known=record.uid in known,
        )
        for record in records
        if record.link  # a host workload has none: its ztunnel enforces its policies
    ]
    text = render_network_policy(workloads, policies.policies if policies is not None else None)
    return ensure_table(state, TABLE_POLICY, text)


def _last_good(state: NodeState) -> PolicyState | None:
    try:
        return state.load_policies()
    except StoreError as error:
        # closed until the control plane sends them again
        log.error("last good policies are lost, workloads stay closed", {"error": str(error)})
        return None


def ensure_table(state: NodeState, table: str, text: str) -> list[str]:
    """Load a table unless exactly this text is in force already; return what changed."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    mark = state.table_marks().get(table, {})
    same = mark.get("digest") == digest
    if same and nft.table_fingerprint(table) == mark.get("fingerprint"):
        return []
    nft.apply_ruleset(text)
    state.write_table_mark(table, digest, nft.table_fingerprint(table))
    return [f"table {table}" + (" (somebody had changed it)" if same else "")]
