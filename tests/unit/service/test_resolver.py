"""Names by nameservers on this machine's loopback, and by a file of hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from metalmesh.service.dns import Upstreams
from metalmesh.service.metrics import Registry
from metalmesh.service.resolver import Resolver
from tests.support.nameserver import AAAA, A, Nameserver, Zone, nameserver


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Resolver]:
    def resolver(
        port: int = 1, hosts: str = "", servers: tuple[str, ...] = ("127.0.0.1",)
    ) -> Resolver:
        conf = tmp_path / "resolv.conf"
        conf.write_text("search x\n" + "".join(f"nameserver {text}\n" for text in servers))
        (tmp_path / "hosts").write_text(hosts)
        return Resolver(
            Upstreams((), conf, lambda _: False), Registry(), hosts=tmp_path / "hosts", port=port
        )

    return resolver


ZONE: Zone = {
    ("a.example", A): ["192.0.2.1", "192.0.2.2"],
    ("a.example", AAAA): ["2001:db8::1"],
    ("long.example", A): ["192.0.2.9"],
}


def texts(found: list[object]) -> list[str]:
    return [str(item) for item in found]


def test_family_of_the_client_comes_first(make: Callable[..., Resolver]) -> None:
    async def scenario(resolver: Resolver) -> None:
        four = texts(await resolver.resolve("A.Example.", 4))
        assert sorted(four[:2]) == ["192.0.2.1", "192.0.2.2"]
        assert four[2] == "2001:db8::1"
        assert texts(await resolver.resolve("a.example", 6))[0] == "2001:db8::1"
        firsts = {texts(await resolver.resolve("a.example", 4))[0] for _ in range(50)}
        assert firsts == {"192.0.2.1", "192.0.2.2"}

    with nameserver(ZONE) as server:
        asyncio.run(scenario(make(server.port)))
        assert server.asked == ["a.example"] * 2, "asked once for each family, then remembered"


def test_answers_are_asked_for_again_when_their_time_is_over(make: Callable[..., Resolver]) -> None:
    async def scenario(resolver: Resolver, server: Nameserver) -> None:
        await resolver.resolve("a.example", 4)
        server.zone = {("a.example", A): ["192.0.2.7"]}
        assert texts(await resolver.resolve("a.example", 4)) == ["192.0.2.7"]

    with nameserver(ZONE, ttl=0) as server:
        asyncio.run(scenario(make(server.port), server))


def test_old_answer_serves_on_while_nobody_answers(make: Callable[..., Resolver]) -> None:
    async def scenario(resolver: Resolver, server: Nameserver) -> None:
        before = sorted(texts(await resolver.resolve("a.example", 4)))
        server.code = 2  # SERVFAIL
        server.zone = {}
        assert sorted(texts(await resolver.resolve("a.example", 4))) == before
        assert await resolver.resolve("b.example", 4) == []
        server.code = 3  # "no such name" is an answer
        assert await resolver.resolve("a.example", 4) == []

    with nameserver(ZONE, ttl=0) as server:
        asyncio.run(scenario(make(server.port), server))


def test_long_answers_come_over_tcp(make: Callable[..., Resolver]) -> None:
    with nameserver(ZONE) as server:
        found = asyncio.run(make(server.port).resolve("long.example", 4))
    assert texts(found) == ["192.0.2.9"]


def test_next_nameserver_is_asked_when_one_is_not_there(make: Callable[..., Resolver]) -> None:
    with nameserver(ZONE) as server:
        resolver = make(server.port, servers=("127.0.0.2", "127.0.0.1"))
        assert texts(asyncio.run(resolver.resolve("long.example", 4))) == ["192.0.2.9"]


def test_questions_at_one_time_are_one(make: Callable[..., Resolver]) -> None:
    async def scenario(resolver: Resolver) -> None:
        await asyncio.gather(*(resolver.resolve("a.example", 4) for _ in range(20)))

    with nameserver(ZONE) as server:
        asyncio.run(scenario(make(server.port)))
        assert len(server.asked) == 2


def test_hosts_and_addresses_need_no_nameserver(make: Callable[..., Resolver]) -> None:
    resolver = make(hosts="192.0.2.3 Web web.example # me\n::1 web\nfe80::1%eth0 web\nx web\n")
    assert sorted(texts(asyncio.run(resolver.resolve("web", 4)))) == ["192.0.2.3", "::1"]
    assert texts(asyncio.run(resolver.resolve("2001:db8::5", 4))) == ["2001:db8::5"]


@pytest.mark.parametrize("name", ["", "a" * 64 + ".invalid", "..", "nobody.invalid"])
def test_name_without_answer_has_no_addresses(make: Callable[..., Resolver], name: str) -> None:
    assert asyncio.run(make(servers=()).resolve(name, 4)) == []
