"""What main knows of the mesh and what it tells the workers about it.

Everything arrives in the wrong order sooner or later: workloads before the control plane knows
them, policies after the workloads that list them, connections before either. Until a workload is
known its connections wait, five seconds at most; until policies have been received none is sent,
and a worker without policies admits nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from metalmesh import constants
from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORITY,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    WORKLOAD_INFO_TIMEOUT_SECONDS,
)
from metalmesh.model.compat import Deviation
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy.trust_domains import TrustDomains
from metalmesh.routing.route import Route, RouteKind, find_route, with_addresses
from metalmesh.routing.state import MeshState
from metalmesh.service.resolver import Resolver
from metalmesh.xds.authorization import decode_authorization
from metalmesh.xds.delta_client import Subscription
from metalmesh.xds.node import decode_authority, decode_network_policy
from metalmesh.xds.wds import decode_address
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.upstream import endpoint_nameservers, read_local
from metalmesh.ztunnel.view import (
    find_local,
    labels_of,
    policies_for,
    route_message,
    view_local,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.model.workload import Workload
    from metalmesh.service.metrics import Registry
    from metalmesh.xds.delta_client import Update
    from metalmesh.ztunnel.config import ZtunnelConfig
    from metalmesh.ztunnel.locals import LocalWorkload
    from metalmesh.ztunnel.process import Worker

SUBSCRIPTIONS: Final = (
    Subscription(type_url=TYPE_ADDRESS, decode=decode_address),
    Subscription(type_url=TYPE_AUTHORIZATION, decode=decode_authorization),
    # ours; another control plane never answers it
    Subscription(type_url=TYPE_NETWORK_POLICY, decode=decode_network_policy, required=False),
    Subscription(type_url=TYPE_AUTHORITY, decode=decode_authority, required=False),
)
#: how long a control plane may take to answer NetworkPolicy after the rest, before we conclude
#: that it has no such type
NETWORK_POLICY_GRACE_SECONDS: Final = 5.0
#: how long a main process that leaves still looks names up for connections that wait
LAST_LOOKUPS_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A question of a worker that cannot be answered yet."""

    worker: Worker
    question: messages.Resolve
    expires_at: float


class MeshView:
    """Mesh state, local workloads, and the workers' copies of what concerns them."""

    def __init__(
        self,
        config: ZtunnelConfig,
        publish: Callable[[messages.Message], None],
        on_identities: Callable[[set[str]], None],
        registry: Registry,
    ) -> None:
        self._config = config
        self._resolver = Resolver(endpoint_nameservers(config), registry)
        self._publish = publish
        self._on_identities = on_identities
        self._received: set[str] = set()
        self._waiting: list[_Waiting] = []
        self._lookups: set[asyncio.Task[None]] = set()
        self._refresh_planned = False
        self._routes_changed = False
        self._grace_over = False
        #: whether policies that change decide open connections anew
        self._reevaluate = True
        #: counts changes of workloads and services
        self.address_version = 0
        self.trust_domains = TrustDomains(config.trust_domain, config.trust_domain_aliases)
        self.state = MeshState()
        self.local = read_local(config.local_xds_path)
        self.locals: dict[str, LocalWorkload] = {}

    # --- changes ---------------------------------------------------------------------------
    def on_update(self, update: Update) -> None:
        """Apply what the control plane sent (or what was saved)."""
        match update.type_url:
            case constants.TYPE_ADDRESS:
                self.state.apply_addresses(update.changed, update.removed)
                self._routes_changed = True
                self.address_version += 1
            case constants.TYPE_AUTHORIZATION:
                self.state.apply_policies(update.changed, update.removed)
                if TYPE_NETWORK_POLICY not in self._received:
                    asyncio.get_running_loop().call_later(
                        NETWORK_POLICY_GRACE_SECONDS, self._end_grace
                    )
            case _:
                self.state.apply_network_policies(update.changed, update.removed)
        if update.type_url != TYPE_ADDRESS:
            self._reevaluate = True
        self._received.add(update.type_url)
        self.plan_refresh()

    def add_local(self) -> None:
        """What the local file says; without a control plane that is all there is to know."""
        if not self._config.local_xds_path:
            return
        self.state.apply_addresses({item.uid: item for item in self.local.workloads})
        self.state.apply_addresses({item.key: item for item in self.local.services})
        self.state.apply_policies({policy.key: policy for policy in self.local.policies})
        self._routes_changed = True
        if not self._config.xds_address:
            self._received |= {subscription.type_url for subscription in SUBSCRIPTIONS}
        self.plan_refresh()

    def _end_grace(self) -> None:
        self._grace_over = True
        self.plan_refresh()

    def plan_refresh(self) -> None:
        """Bring the workers up to date in the next turn of the loop, once for many changes."""
        if not self._refresh_planned:
            self._refresh_planned = True
            asyncio.get_running_loop().call_soon(self._refresh)

    def add(self, local: LocalWorkload) -> None:
        """Serve a workload; the caller sends the AddWorkload message with ``local.view``."""
        self.locals[local.info.uid] = local
        local.view = view_local(find_local(self.state, local.info))
        local.policies = None
        self.plan_refresh()

    def remove(self, uid: str) -> LocalWorkload | None:
        """Forget a workload."""
        self.plan_refresh()
        return self.locals.pop(uid, None)

    def _refresh(self) -> None:
        self._refresh_planned = False
        if self._routes_changed:
            self._routes_changed = False
            self._publish(messages.InvalidateRoutes())
        for local in self.locals.values():
            self._refresh_local(local)
        self._reevaluate = Deviation.POLICY_ATTACHMENT not in self._config.istio_compat
        self._on_identities(self._identities())
        self._answer_waiting()

    def _refresh_local(self, local: LocalWorkload) -> None:
        workload = find_local(self.state, local.info)
        view = view_local(workload)
        if view != local.view:
            local.view = view
            self._publish(view.updated(local.info))
        policies = self._policies(local, workload)
        if policies is not None and policies != local.policies:
            local.policies = policies
            self._publish(replace(policies, reevaluate=self._reevaluate))

    def _policies(
        self, local: LocalWorkload, workload: Workload | None
    ) -> messages.Policies | None:
        """None while they are not known; the workers admit nothing then."""
        known = TYPE_AUTHORIZATION in self._received and (
            TYPE_NETWORK_POLICY in self._received or self._grace_over
        )
        if not known:
            return None
        if workload is None:
            # it was known once and is gone: admit nothing more
            return local.policies and messages.Policies(
                uid=local.info.uid, missing=(f"workload {local.info.uid}",)
            )
        return policies_for(
            self.state,
            local.info.uid,
            workload,
            inner_enforcement=self._config.network_policy_inner_enforcement,
            compat=self._config.istio_compat,
        )

    def _identities(self) -> set[str]:
        """Identities this node needs certificates for: served, or placed here (prefetch)."""
        served = {local.view.identity for local in self.locals.values() if local.view.identity}
        placed = {
            str(workload.identity)
            for workload in self.state.workloads.values()
            if workload.node == self._config.node_name
            and (workload.protocol is TunnelProtocol.HBONE or workload.native_tunnel)
        }
        return served | placed

    # --- questions of the workers ------------------------------------------------------------
    def introduce(self, worker: Worker) -> None:
        """Tell a new worker all about the local workloads."""
        for local in self.locals.values():
            worker.send(local.view.added(local.info), local.fds)
            if local.policies is not None:
                worker.send(local.policies)

    def resolve(self, worker: Worker, question: messages.Resolve) -> None:
        """Answer where a connection goes, now or when its workload is known."""
        expires_at = asyncio.get_running_loop().time() + WORKLOAD_INFO_TIMEOUT_SECONDS
        waiting = _Waiting(worker, question, expires_at)
        if not self._answer(waiting):
            self._waiting.append(waiting)
            asyncio.get_running_loop().call_at(expires_at, self._answer_waiting)

    def forget_worker(self, worker: Worker) -> None:
        """A worker is gone, and with it its questions."""
        self._waiting = [item for item in self._waiting if item.worker is not worker]

    def _answer_waiting(self) -> None:
        self._waiting = [item for item in self._waiting if not self._answer(item)]

    def _answer(self, item: _Waiting) -> bool:
        """Answer if possible, or if time is over; return whether that was so."""
        question = item.question
        local = self.locals.get(question.uid)
        source = find_local(self.state, local.info) if local is not None else None
        if source is None:
            if local is not None and asyncio.get_running_loop().time() < item.expires_at:
                return False
            route = Route(kind=RouteKind.ERROR, error=_unknown_local(question.uid, local))
        else:
            route = find_route(self.state, source, ip_address(question.address), question.port)
        if route.hostnames:
            task = asyncio.create_task(self._answer_by_name(item, route))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)
        else:
            self._reply(item, route, cacheable=source is not None)
        return True

    async def _answer_by_name(self, item: _Waiting, route: Route) -> None:
        """Look the endpoints up first; each connection anew, since such answers change."""
        wanted = ip_address(item.question.address)
        answers = await asyncio.gather(
            *(self._resolver.resolve(name, wanted.version) for name in route.hostnames)
        )
        found = dict(zip(route.hostnames, answers, strict=True))
        if not item.worker.channel.closed:
            self._reply(item, with_addresses(route, found), cacheable=False)

    def _reply(self, item: _Waiting, route: Route, *, cacheable: bool) -> None:
        message = route_message(route, self.trust_domains, cacheable=cacheable)
        item.worker.send(messages.RouteReply(request_id=item.question.request_id, route=message))

    async def finish_lookups(self) -> None:
        """Answer what is being looked up: a process after this one knows nothing of it."""
        if self._lookups:
            await asyncio.wait(self._lookups, timeout=LAST_LOOKUPS_SECONDS)

    def lookup_source(self, worker: Worker, question: messages.LookupSource) -> None:
        """Answer who has an address of this network."""
        workload = self.state.workload_at(self._config.network, ip_address(question.address))
        labels = labels_of(workload) if workload is not None else None
        worker.send(messages.SourceReply(request_id=question.request_id, labels=labels))


def _unknown_local(uid: str, local: LocalWorkload | None) -> str:
    if local is None:
        return f"failed to fetch information about local workload: {uid}"
    info = local.info
    return (
        "failed to fetch information about local workload: "
        f"{info.service_account}.{info.namespace} ({info.name})"
    )
