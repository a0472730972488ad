"""Which service a name means to a client, and what is said about it (istio-facts 7).

A name is tried as it is, then in the forms Kubernetes' search path would give it, then without a
search domain it already carries (the client's resolver appended it). Each form is tried exactly,
then with wildcards from the first label on. Beyond Istio, as Kubernetes' own DNS: endpoints of a
headless service have names of their own, and named ports have SRV records.

An ``authority`` answers for everything in the cluster's domain: what is not there does not exist.
Others leave what they do not know to the next server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.dns.message import Answer, Location, RecordType, ResponseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from metalmesh.dns.message import Query
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress, Workload

    #: usable endpoints of a service: workload, and service port -> its own port
    Endpoints = Callable[[Service], Iterable[tuple[Workload, Mapping[int, int]]]]
    Shuffle = Callable[[list[IPAddress]], None]

TTL_SECONDS: Final = 30
_SERVICES: Final = "svc"
_FAMILIES: Final[dict[int, int]] = {RecordType.A: 4, RecordType.AAAA: 6}
_EXCLUDED: Final = {"IPv4": 6, "IPv6": 4}
_TCP: Final = "_tcp"


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks; without a namespace it is no workload of this node."""

    namespace: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of the asked name; ``stripped`` is what was asked without a search domain."""

    name: str
    stripped: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name means: a service, or one endpoint of it."""

    service: Service
    alias: str = ""
    endpoint: str = ""


class ServiceNames:
    """Services by hostname."""

    def __init__(
        self, services: Iterable[Service], cluster_domain: str, *, authority: bool
    ) -> None:
        self._domain = cluster_domain.lower().rstrip(".")
        self._under_services = f".{_SERVICES}.{self._domain}"
        self._authority = authority
        self._by_name: dict[str, list[Service]] = {}
        for service in services:
            self._by_name.setdefault(service.hostname.lower(), []).append(service)

    def answer(
        self, query: Query, client: Client, endpoints: Endpoints, shuffle: Shuffle
    ) -> Answer | None:
        """Answer a query; None: ask another server."""
        if not query.in_class:
            return None
        if query.name.startswith("_"):
            return self._locations(query, client, endpoints)
        found = self._find(query.name, client.namespace)
        version = _FAMILIES.get(query.type)
        if found is None:
            return self._unknown(query.name, ResponseCode.NXDOMAIN)
        if version is None:
            # the name exists and has no record of this type; others may know more of their own
            return self._unknown(query.name, ResponseCode.NOERROR)
        if found.endpoint:
            chosen = [w for w, _ in endpoints(found.service) if w.name.lower() == found.endpoint]
            if not chosen:
                return self._unknown(query.name, ResponseCode.NXDOMAIN)
            addresses = [a for w in chosen for a in w.addresses if a.version == version]
        else:
            addresses = _addresses(found.service, version, client, endpoints)
        shuffle(addresses)
        return Answer(alias=found.alias, addresses=tuple(addresses), ttl_seconds=TTL_SECONDS)

    def _unknown(self, name: str, code: ResponseCode) -> Answer | None:
        ours = name == self._domain or name.endswith(f".{self._domain}")
        return Answer(code) if self._authority and ours else None

    def _locations(self, query: Query, client: Client, endpoints: Endpoints) -> Answer | None:
        """SRV: ``_PORT._tcp.SERVICE``."""
        port_name, _, rest = query.name.removeprefix("_").partition(".")
        protocol, _, name = rest.partition(".")
        found = self._find(name, client.namespace) if protocol == _TCP else None
        port = 0
        if found is not None and not found.endpoint:
            port = found.service.port_names.get(port_name, 0)
        if found is None or not port:
            return self._unknown(query.name, ResponseCode.NXDOMAIN)
        if query.type != RecordType.SRV:
            return self._unknown(query.name, ResponseCode.NOERROR)
        service = found.service
        locations = [Location(port, service.hostname)]
        if not service.vips:
            locations = [
                Location(ports.get(port, port), f"{workload.name}.{service.hostname}")
                for workload, ports in endpoints(service)
            ]
        return Answer(locations=tuple(locations), ttl_seconds=TTL_SECONDS)

    # --- names -------------------------------------------------------------------------------
    def _find(self, name: str, namespace: str) -> _Found | None:
        forms = list(self._forms(name, namespace))
        for form in forms:
            for candidate in _with_wildcards(form.name):
                service = self._choose(candidate, namespace)
                if service is not None:
                    return _Found(service, form.stripped if candidate == form.name else "")
        for form in forms:
            first, _, rest = form.name.partition(".")
            service = self._choose(rest, namespace)
            if service is not None and not service.vips and rest.endswith(self._under_services):
                return _Found(service, form.stripped, first)
        return None

    def _choose(self, hostname: str, namespace: str) -> Service | None:
        under_services = hostname.endswith(self._under_services)
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
        own = [f"{namespace}{self._under_services}"] if namespace else []
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
    service: Service, version: int, client: Client, endpoints: Endpoints
) -> list[IPAddress]:
    if _EXCLUDED.get(service.ip_families) == version:
        return []
    if service.vips:
        return [
            vip.address
            for vip in service.vips
            if vip.address.version == version and vip.network == client.network
        ]
    found: list[IPAddress] = []
    for workload, _ in endpoints(service):
        first = next((item for item in workload.addresses if item.version == version), None)
        if first is not None and first not in found:
            found.append(first)
    return found
