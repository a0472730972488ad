"""Which service a name means to a client, and its addresses (istio-facts 7).

A name is tried as it is, then in the forms Kubernetes' search path would give it, then without a
search domain it already carries (the client's resolver appended it). Each form is tried exactly,
then with wildcards from the first label on. The node is the authority for the cluster's domain:
what is not there does not exist, and is asked nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.dns.message import Answer, RecordType, ResponseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from metalmesh.dns.message import Query
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress

TTL_SECONDS: Final = 30
_SERVICES: Final = "svc"
_FAMILIES: Final[dict[int, int]] = {RecordType.A: 4, RecordType.AAAA: 6}
_EXCLUDED: Final = {"IPv4": 6, "IPv6": 4}


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of the asked name; ``stripped`` is what was asked without a search domain."""

    name: str
    stripped: str = ""


class ServiceNames:
    """Services by hostname."""

    def __init__(self, services: Iterable[Service], cluster_domain: str) -> None:
        self._domain = cluster_domain.lower().rstrip(".")
        self._by_name: dict[str, list[Service]] = {}
        for service in services:
            self._by_name.setdefault(service.hostname.lower(), []).append(service)

    def answer(
        self,
        query: Query,
        namespace: str,
        endpoints: Callable[[Service], Iterable[Sequence[IPAddress]]],
        shuffle: Callable[[list[IPAddress]], None],
    ) -> Answer | None:
        """Answer a query of a client in ``namespace``; None: ask another server.

        ``namespace`` is empty for clients that are no workload of this node.
        """
        if not query.in_class:
            return None
        found = self._find(query.name, namespace)
        if found is None:
            return Answer(ResponseCode.NXDOMAIN) if self._is_ours(query.name) else None
        service, alias = found
        version = _FAMILIES.get(query.type)
        if version is None:
            # the name exists and has no record of this type; others may know more of their own
            return Answer() if self._is_ours(query.name) else None
        addresses = _addresses(service, version, endpoints)
        shuffle(addresses)
        return Answer(alias=alias, addresses=tuple(addresses), ttl_seconds=TTL_SECONDS)

    def _is_ours(self, name: str) -> bool:
        return name == self._domain or name.endswith(f".{self._domain}")

    def _find(self, name: str, namespace: str) -> tuple[Service, str] | None:
        for form in self._forms(name, namespace):
            for candidate in _with_wildcards(form.name):
                service = self._choose(candidate, namespace)
                if service is not None:
                    alias = form.stripped if candidate == form.name else ""
                    return service, alias
        return None

    def _choose(self, hostname: str, namespace: str) -> Service | None:
        under_services = hostname.endswith(f".{_SERVICES}.{self._domain}")
        usable = [
            service
            for service in self._by_name.get(hostname, ())
            if (service.vips or under_services)
            and (not service.private or service.namespace == namespace)
        ]
        if not usable:
            return None
        return max(usable, key=lambda item: (item.namespace == namespace, item.canonical))

    def _forms(self, name: str, namespace: str) -> Iterator[_Form]:
        yield _Form(name)
        for expanded in self._expansions(name, namespace):
            yield _Form(expanded)
        for domain in self._search_domains(namespace):
            stripped = name.removesuffix(f".{domain}")
            if stripped != name:
                yield _Form(stripped, stripped)
                for expanded in self._expansions(stripped, namespace):
                    # the asked name itself is no alias of anything
                    yield _Form(expanded, stripped if expanded != name else "")

    def _search_domains(self, namespace: str) -> Sequence[str]:
        own = [f"{namespace}.{_SERVICES}.{self._domain}"] if namespace else []
        return [*own, f"{_SERVICES}.{self._domain}", self._domain]

    def _expansions(self, name: str, namespace: str) -> Iterator[str]:
        labels = name.split(".")
        in_services = labels[-1] == _SERVICES
        services = f"{_SERVICES}.{self._domain}"
        match len(labels):
            case 1 if namespace:
                yield f"{name}.{namespace}.{services}"
            case 2:
                yield f"{name}.{services}"
                if namespace:
                    yield f"{name}.{namespace}.{services}"
            case 3:
                if in_services:
                    yield f"{name}.{self._domain}"
                yield f"{name}.{services}"
            case 4 if in_services:
                yield f"{name}.{self._domain}"


def _with_wildcards(name: str) -> Iterator[str]:
    yield name
    labels = name.split(".")
    for kept in range(1, len(labels)):
        yield ".".join(["*", *labels[kept:]])


def _addresses(
    service: Service,
    version: int,
    endpoints: Callable[[Service], Iterable[Sequence[IPAddress]]],
) -> list[IPAddress]:
    if _EXCLUDED.get(service.ip_families) == version:
        return []
    if service.vips:
        return [vip.address for vip in service.vips if vip.address.version == version]
    found = []
    for addresses in endpoints(service):
        first = next((item for item in addresses if item.version == version), None)
        if first is not None and first not in found:
            found.append(first)
    return found
