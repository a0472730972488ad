"""What NetworkPolicy and authorization say of a connection to one endpoint, step by step.

Asked of the evaluators of the node agent and the ztunnel, in the order in which they are met; each
answer is a step that names the user's own object and rule. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalmesh.constants import PORT_HBONE, STRICT_POLICY_NAME
from metalmesh.model.network_policy import Protocol
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy import l4, network_policy
from metalmesh.policy.answer import Effect, Outcome, Step
from metalmesh.policy.nearest import nearest_rule
from metalmesh.policy.peer_authentication import CONVERTED_PREFIX
from metalmesh.policy.world import World, name_of

if TYPE_CHECKING:
    from metalmesh.model.workload import IPAddress, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """A connection to one endpoint as it is on the wire."""

    source: Workload
    source_ip: IPAddress | None
    destination: Workload | None
    #: None while a hostname is not resolved
    address: IPAddress | None
    #: the application's port
    port: int
    tunneled: bool
    #: the endpoint is a waypoint, which decides what comes after it
    waypoint: bool = False
    protocol: Protocol = Protocol.TCP

    @property
    def wire_port(self) -> int:
        """The port that packet rules see."""
        return PORT_HBONE if self.tunneled else self.port


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """What no rule of the NetworkPolicies of a workload admits."""

    #: ``ingress`` or ``egress`` of the isolated workload
    direction: str
    workload: Workload
    #: the other side: the workload, if it is one of the mesh, and its address
    peer: Workload | None
    address: IPAddress
    protocol: Protocol
    port: int
    #: keys of the policies that isolate the workload
    policies: tuple[str, ...]


class Judge:
    """What policies say of one leg; with ``network_only`` just NetworkPolicy, to the last check."""

    def __init__(self, world: World, leg: Leg, *, network_only: bool = False) -> None:
        self._world = world
        self._leg = leg
        self._network_only = network_only
        self._policies = [item for _, item in sorted(world.state.network_policies.items())]
        self.steps: list[Step] = []
        self.refusals: list[Refusal] = []

    def judge(self) -> Outcome:
        """Ask in the order of the way; stop at the first refusal."""
        leg = self._leg
        if leg.address is None:
            self._note("resolve", "the endpoint is a hostname: policies by address cannot be told")
        elif self._network_only:
            self._wire()
            self._inside()
            if self.refusals:
                return Outcome.DENIED
        elif not (self._wire() and self._arrival()):
            return Outcome.DENIED
        if leg.waypoint:
            self._note("waypoint", "what follows is decided by the waypoint")
        return Outcome.ALLOWED if leg.tunneled else Outcome.PLAINTEXT

    def _wire(self) -> bool:
        """NetworkPolicy where packets are forwarded."""
        leg = self._leg
        assert leg.address is not None
        port = leg.wire_port
        if not self._world.on_host(leg.source):
            verdict = network_policy.evaluate_egress(
                self._policies, leg.source.uid, leg.address, leg.protocol, port
            )
            if not self._network("egress", port, verdict) and not self._network_only:
                return False
        if self._world.on_host(leg.destination):
            self._note("ingress", "a machine's own namespace has no packet rules of ours")
            return True
        return self._ingress("ingress", port)

    def _inside(self) -> bool:
        """NetworkPolicy at the destination's ztunnel, on the port inside of the tunnel."""
        leg = self._leg
        if leg.tunneled and self._world.inner_enforcement and not leg.waypoint:
            return self._ingress("inside HBONE", leg.port)
        return True

    def _ingress(self, hop: str, port: int) -> bool:
        leg = self._leg
        if leg.destination is None or leg.source_ip is None:
            return True
        verdict = network_policy.evaluate_ingress(
            self._policies, leg.destination.uid, leg.source_ip, leg.protocol, port
        )
        return self._network(hop, port, verdict)

    def _network(self, hop: str, port: int, verdict: network_policy.Verdict) -> bool:
        if not verdict.policy:
            return True
        keys = tuple(verdict.policy.split(", "))
        names = ", ".join(f"NetworkPolicy {key}" for key in keys)
        protocol = self._leg.protocol
        text = verdict.message
        rule = -1
        if verdict.allowed:
            rule = self._world.origin(f"{names} {verdict.direction}", verdict.rule)
            text = f"{verdict.direction} admits {protocol.value.lower()}/{port}"
        else:
            self.refusals.append(self._refusal(verdict.direction, port, keys))
            if self._leg.tunneled and port == PORT_HBONE:
                text += "; admit TCP port 15008, through which the mesh's traffic goes"
        effect = Effect.OK if verdict.allowed else Effect.STOP
        self.steps.append(
            Step(hop=f"{hop} {port}", effect=effect, text=text, object=names, rule=rule)
        )
        return verdict.allowed

    def _refusal(self, direction: str, port: int, keys: tuple[str, ...]) -> Refusal:
        leg = self._leg
        outward = direction == "egress"
        workload, peer = leg.source, leg.destination
        address = leg.address if outward else leg.source_ip
        assert address is not None
        if not outward:
            assert leg.destination is not None
            workload, peer = leg.destination, leg.source if leg.source.uid else None
        return Refusal(
            direction=direction,
            workload=workload,
            peer=peer,
            address=address,
            protocol=leg.protocol,
            port=port,
            policies=keys,
        )

    def _arrival(self) -> bool:
        """The destination's ztunnel, if it has one that sees the connection."""
        leg = self._leg
        destination = leg.destination
        if destination is None:
            return True
        if destination.protocol is not TunnelProtocol.HBONE:
            self._note("inbound", f"{name_of(destination)} is not in the mesh: nobody encrypts")
            return True
        if leg.tunneled and destination.native_tunnel:
            self._note("inbound", f"{name_of(destination)} speaks HBONE and judges by itself")
            return True
        if not leg.tunneled and destination.uid in self._world.bypassing:
            self._note("inbound", "inbound capture is switched off: plaintext goes around policies")
            return True
        if not leg.tunneled and self._world.excluded(destination).excludes_inbound(leg.port):
            what = f"port {leg.port} is excluded from capture"
            self._note("inbound", f"{what}: plaintext goes around policies")
            return True
        if not leg.tunneled:
            self._note("inbound", "it arrives as plaintext, with no identity")
        return self._authorize(destination) and self._inside()

    def _authorize(self, destination: Workload) -> bool:
        leg = self._leg
        if leg.source_ip is None or leg.address is None:
            return True
        policies, missing = l4.applicable(self._world.state.policies.values(), destination)
        if missing and not self._world.missing_skipped:
            text = "listed by the workload and not known: it admits nobody until it is"
            self.steps.append(
                Step(hop="authorization", effect=Effect.STOP, text=text, object=missing[0])
            )
            return False
        for policy, reason in self._world.reservations.get(destination.uid, ()):
            self.steps.append(
                Step(hop="authorization", effect=Effect.NOTE, text=reason, object=policy)
            )
        port = PORT_HBONE if leg.waypoint else leg.port
        identity = leg.source.identity if leg.tunneled else None
        connection = l4.Connection(leg.source_ip, leg.address, port, identity)
        verdict = l4.evaluate(policies, connection)
        for note in verdict.notes:
            name, _ = self._policy(destination, note.policy, -1)
            self.steps.append(
                Step(hop="authorization", effect=Effect.NOTE, text=note.text, object=name)
            )
        name, rule = self._policy(destination, verdict.policy, verdict.rule)
        text = verdict.reason
        if verdict.reason == l4.NONE_ALLOWED:
            nearest = nearest_rule(policies, connection)
            name, rule = self._policy(destination, nearest.policy, nearest.rule)
            text = f"{text}; this comes closest, but {nearest.text}"
        elif name.startswith("PeerAuthentication"):
            text = "mutual TLS is STRICT here, and the client has no identity"
        effect = Effect.OK if verdict.allowed else Effect.STOP
        self.steps.append(
            Step(hop="authorization", effect=effect, text=text, object=name, rule=rule)
        )
        return verdict.allowed

    def _policy(self, destination: Workload, key: str, rule: int) -> tuple[str, int]:
        """The user's object behind a policy in force, and the user's index of its rule."""
        if not key:
            return "", -1
        namespace, _, name = key.partition("/")
        if name == STRICT_POLICY_NAME:
            known = self._world.peer_authentications.get(destination.uid)
            return known or f"PeerAuthentication in {namespace}", -1
        if name.startswith(CONVERTED_PREFIX):
            return f"PeerAuthentication {namespace}/{name.removeprefix(CONVERTED_PREFIX)}", -1
        full = f"AuthorizationPolicy {key}"
        return full, self._world.origin(full, rule)

    def _note(self, hop: str, text: str) -> None:
        self.steps.append(Step(hop=hop, effect=Effect.NOTE, text=text))
