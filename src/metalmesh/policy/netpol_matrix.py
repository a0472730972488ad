"""Who reaches whom, as far as NetworkPolicies decide; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metalmesh.model.network_policy import Protocol
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy.answer import Outcome
from metalmesh.policy.judge import Judge, Leg
from metalmesh.policy.world import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metalmesh.model.workload import Workload
    from metalmesh.policy.world import World

#: protocol and port of an application
Port = tuple[Protocol, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one workload may reach of another one."""

    source: str
    destination: str
    admitted: tuple[Port, ...]
    refused: tuple[Port, ...]

    @property
    def verdict(self) -> str:
        """``all``, ``none`` or ``some`` of the ports; ``-`` without ports."""
        if not self.admitted and not self.refused:
            return "-"
        if not self.refused:
            return "all"
        return "some" if self.admitted else "none"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "source": self.source,
            "destination": self.destination,
            "verdict": self.verdict,
            "admitted": list(map(port_text, self.admitted)),
            "refused": list(map(port_text, self.refused)),
        }


def port_text(port: Port) -> str:
    """``8080`` or ``53/udp``."""
    protocol, number = port
    return str(number) if protocol is Protocol.TCP else f"{number}/{protocol.value.lower()}"


def reach_matrix(
    world: World,
    workloads: Sequence[Workload],
    ports: Mapping[str, Iterable[Port]],
) -> list[list[Cell]]:
    """A row for every workload as source; ``ports`` are those asked for, by destination's uid."""
    return [
        [_cell(world, source, other, sorted(ports.get(other.uid, ()), key=_order))
         for other in workloads]
        for source in workloads
    ]  # fmt: skip


def _order(port: Port) -> tuple[int, str]:
    return port[1], port[0].value


def _cell(world: World, source: Workload, destination: Workload, ports: Sequence[Port]) -> Cell:
    admitted: list[Port] = []
    refused: list[Port] = []
    for port in ports:
        (admitted if _admits(world, source, destination, port) else refused).append(port)
    return Cell(
        source=name_of(source),
        destination=name_of(destination),
        admitted=tuple(admitted),
        refused=tuple(refused),
    )


def _admits(world: World, source: Workload, destination: Workload, port: Port) -> bool:
    """Whether a connection to some address of the destination passes, every check included."""
    protocol, number = port
    meshed = TunnelProtocol.HBONE in {source.protocol} & {destination.protocol}
    for address in destination.addresses:
        own = [item for item in source.addresses if item.version == address.version]
        if not own:
            continue
        leg = Leg(
            source=source,
            source_ip=own[0],
            destination=destination,
            address=address,
            port=number,
            tunneled=meshed and protocol is Protocol.TCP,
            protocol=protocol,
        )
        if Judge(world, leg, network_only=True).judge() is not Outcome.DENIED:
            return True
    return False
