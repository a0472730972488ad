"""Why a connection is allowed, denied, plaintext or passed through: which rule, at which hop.

Nothing is decided here. Route, NetworkPolicy and authorization are asked of the cores that the
ztunnel and the node agent use, in the order in which a connection meets them:

1. the source's capture, and the route its ztunnel takes
2. NetworkPolicy on the wire at the source (egress) and the destination (ingress): port 15008 when
   the connection is tunneled
3. the destination's ztunnel: PeerAuthentication and AuthorizationPolicy, then NetworkPolicy again,
   on the port inside of the tunnel
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from metalmesh.model.network_policy import Protocol
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy.answer import Answer, Effect, Outcome, Path, Step
from metalmesh.policy.judge import Judge, Leg
from metalmesh.policy.world import Target, World, name_of
from metalmesh.routing.endpoints import choose_address, select_endpoints
from metalmesh.routing.route import RouteKind, find_route, socket_text

if TYPE_CHECKING:
    from metalmesh.model.workload import IPAddress, Workload
    from metalmesh.policy.judge import Refusal
    from metalmesh.routing.route import Hop


def explain(
    world: World,
    source: Workload,
    target: Target,
    *,
    protocol: Protocol = Protocol.TCP,
    network_only: bool = False,
) -> Answer:
    """Explain a connection of ``source`` to ``target``.

    ``network_only``: as if nothing but NetworkPolicies decided, and with all that they refuse.
    """
    addresses = _asked(world, source, target)
    if not addresses:
        text = f"no healthy upstream: {target.text} has no address and no endpoint"
        step = Step(hop="route", effect=Effect.STOP, text=text, object=_service(target))
        return _answer(world, source, target, "", [step], [], Outcome.UNREACHABLE)
    steps: list[Step] = []
    paths: list[Path] = []
    outcomes: list[Outcome] = []
    refusals: list[Refusal] = []
    for address, port in addresses:
        found = _Question(
            world, source, target, address, port, protocol=protocol, network_only=network_only
        )
        outcomes.append(found.explain())
        steps += [step for step in found.steps if step not in steps]
        paths += found.paths
        refusals += found.refusals
    asked = socket_text(*addresses[0])
    answer = _answer(world, source, target, asked, steps, paths, _overall(outcomes))
    return replace(answer, refusals=tuple(refusals))


def _asked(world: World, source: Workload, target: Target) -> list[tuple[IPAddress, int]]:
    """The addresses that an application may connect to; of a headless service, each endpoint's."""
    if target.addresses:
        families = {address.version for address in source.addresses}
        fitting = [item for item in target.addresses if item.version in families]
        return [((fitting or list(target.addresses))[0], target.port)]
    if target.service is None:
        return []
    uids = world.state.endpoints.get(target.service.key, {})
    found = []
    for uid in sorted(uids):
        workload = world.state.workloads[uid]
        if workload.healthy and workload.addresses:
            found.append((workload.addresses[0], target.port))
    return found


def _overall(outcomes: list[Outcome]) -> Outcome:
    return outcomes[0] if len(set(outcomes)) == 1 else Outcome.DEPENDS


def _answer(
    world: World,
    source: Workload,
    target: Target,
    asked: str,
    steps: list[Step],
    paths: list[Path],
    outcome: Outcome,
) -> Answer:
    return Answer(
        source=name_of(source),
        node=source.node,
        netns=world.netns.get(source.uid, ""),
        destination=target.text,
        address=asked,
        outcome=outcome,
        steps=tuple(steps),
        paths=tuple(paths),
    )


def _service(target: Target) -> str:
    return f"Service {target.service.namespace}/{target.service.name}" if target.service else ""


class _Question:
    """A connection to one address."""

    def __init__(
        self,
        world: World,
        source: Workload,
        target: Target,
        address: IPAddress,
        port: int,
        *,
        protocol: Protocol,
        network_only: bool,
    ) -> None:
        self._world = world
        self._source = source
        self._target = target
        self._address = address
        self._port = port
        self._protocol = protocol
        self._network_only = network_only
        self.steps: list[Step] = []
        self.paths: list[Path] = []
        #: of a connection that leaves the mesh
        self.refusals: list[Refusal] = []

    def explain(self) -> Outcome:
        """Fill steps and paths; return the outcome."""
        if self._protocol is not Protocol.TCP:
            self._note("outbound", f"{self._protocol.value} is not captured: it goes as it is")
            return self._unrouted()
        excluded = self._world.excluded(self._source)
        if excluded.excludes_outbound(self._address, self._port):
            what = f"{self._address} port {self._port} is excluded from capture: it goes as it is"
            self._note("outbound", what)
            return self._unrouted()
        if self._source.protocol is TunnelProtocol.HBONE:
            self._note("outbound", f"the ztunnel of {self._where(self._source)} takes it")
            return self._routed()
        what = "is in no mesh" if not self._source.uid else "is not in the mesh (dataplane-mode)"
        self._note("outbound", f"{name_of(self._source)} {what}: it connects by itself")
        return self._unrouted()

    def _routed(self) -> Outcome:
        world, address = self._world, self._address
        route = find_route(world.state, self._source, address, self._port)
        service = f"Service {route.service.namespace}/{route.service.name}" if route.service else ""
        if route.kind is RouteKind.ERROR:
            text = f"{route.error}{self._missing_endpoints()}"
            self.steps.append(Step(hop="route", effect=Effect.STOP, text=text, object=service))
            return Outcome.UNREACHABLE
        if route.kind is RouteKind.PASSTHROUGH:
            text = f"nobody in the mesh has {address}: it is passed through as it is"
            self._step("route", text, service)
            return self._passed_through()
        through = self._endpoint_words(len(route.hops), service)
        self._step("route", through, service)
        return self._judge_all([self._leg_of(hop) for hop in route.hops])

    def _unrouted(self) -> Outcome:
        """The connection of somebody without a ztunnel: the node's own rules know services."""
        state, address, port = self._world.state, self._address, self._port
        workload = state.workload_at(self._source.network, address)
        if workload is not None:
            self._step("route", f"{address} is {name_of(workload)}", "")
            return self._judge_all([self._leg(workload, address, port, tunneled=False)])
        service = state.service_at(self._source.network, address, self._source.namespace)
        if service is None:
            self._step("route", f"nobody in the mesh has {address}", "")
            return self._passed_through()
        name = f"Service {service.namespace}/{service.name}"
        legs = []
        for candidate in select_endpoints(state, service, port, self._source):
            chosen = choose_address(candidate.workload, address, service.ip_families)
            if chosen is not None:
                leg = self._leg(candidate.workload, chosen, candidate.port, tunneled=False)
                legs.append(leg)
        if not legs:
            text = f"no healthy upstream: {address}:{port}{self._missing_endpoints()}"
            self.steps.append(Step(hop="route", effect=Effect.STOP, text=text, object=name))
            return Outcome.UNREACHABLE
        self._step("route", self._endpoint_words(len(legs), name), name)
        return self._judge_all(legs)

    def _missing_endpoints(self) -> str:
        """Why a service has no endpoint for the port."""
        service = self._target.service
        if service is None:
            return ""
        if self._port not in service.ports:
            ports = ", ".join(map(str, sorted(service.ports))) or "none"
            return f"; the service has no port {self._port}, only {ports}"
        uids = self._world.state.endpoints.get(service.key, {})
        if not uids:
            return "; its selector matches no workload"
        sick = sum(not self._world.state.workloads[uid].healthy for uid in uids)
        return f"; of {len(uids)} endpoints, {sick} are unhealthy"

    def _endpoint_words(self, count: int, service: str) -> str:
        if not service:
            return f"{self._address} is a workload of the mesh"
        return f"port {self._port} leads to {count} endpoint{'s' if count > 1 else ''}"

    def _leg_of(self, hop: Hop) -> Leg:
        if not hop.address:
            return self._leg(hop.workload, None, hop.target_port, tunneled=bool(hop.authority))
        dialled, _, port = hop.address.rpartition(":")
        inner, _, inner_port = hop.authority.rpartition(":")
        return self._leg(
            hop.workload,
            next(item for item in hop.workload.addresses if str(item) == dialled.strip("[]")),
            int(inner_port or port),
            tunneled=bool(hop.authority),
            waypoint=bool(hop.authority) and inner != dialled,
        )

    def _leg(
        self,
        workload: Workload | None,
        address: IPAddress | None,
        port: int,
        *,
        tunneled: bool,
        waypoint: bool = False,
    ) -> Leg:
        wanted = (address or self._address).version
        own = [item for item in self._source.addresses if item.version == wanted]
        return Leg(
            source=self._source,
            source_ip=own[0] if own else None,
            destination=workload,
            address=address,
            port=port,
            tunneled=tunneled,
            waypoint=waypoint,
            protocol=self._protocol,
        )

    def _passed_through(self) -> Outcome:
        leg = self._leg(None, self._address, self._port, tunneled=False)
        judge = Judge(self._world, leg, network_only=self._network_only)
        outcome = judge.judge()
        self.steps += judge.steps
        self.refusals += judge.refusals
        return Outcome.PASSED_THROUGH if outcome is Outcome.PLAINTEXT else outcome

    def _judge_all(self, legs: list[Leg]) -> Outcome:
        outcomes = []
        for leg in legs:
            judge = Judge(self._world, leg, network_only=self._network_only)
            outcome = judge.judge()
            outcomes.append(outcome)
            assert leg.destination is not None
            dialled = socket_text(leg.address, leg.wire_port) if leg.address else "a hostname"
            self.paths.append(
                Path(
                    endpoint=name_of(leg.destination),
                    node=leg.destination.node,
                    address=dialled,
                    target=socket_text(leg.address, leg.port) if leg.address else "",
                    outcome=outcome,
                    steps=tuple(judge.steps),
                    refusals=tuple(judge.refusals),
                )
            )
        return _overall(outcomes)

    def _where(self, workload: Workload) -> str:
        return f"node {workload.node}" if workload.node else "its node"

    def _step(self, hop: str, text: str, name: str) -> None:
        self.steps.append(Step(hop=hop, effect=Effect.OK, text=text, object=name))

    def _note(self, hop: str, text: str) -> None:
        self.steps.append(Step(hop=hop, effect=Effect.NOTE, text=text))
