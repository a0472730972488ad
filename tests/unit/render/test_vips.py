"""Allocated service addresses: stable, unique, within their ranges."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from metalmesh.render.vips import RESERVED, allocate

NET = ipaddress.ip_network
V4, V6 = NET("10.96.0.0/16"), NET("fd00:10:96::/112")


def test_each_key_gets_one_address_per_range() -> None:
    found = allocate(["a/x", "a/y"], [V4, V6], [], {})
    addresses = [address for items in found.values() for address in items]
    assert len(set(addresses)) == 4
    for items in found.values():
        assert items[0] in V4
        assert items[1] in V6


def test_address_depends_on_the_name_only() -> None:
    alone = allocate(["a/x"], [V4], [], {})
    among = allocate(["a/x", *(f"b/{n}" for n in range(50))], [V4], [], {})
    assert alone["a/x"] == among["a/x"]


def test_previous_address_stays() -> None:
    kept = (ipaddress.ip_address("10.96.7.7"),)
    assert allocate(["a/x"], [V4], [], {"a/x": kept})["a/x"] == kept


def test_previous_address_that_was_taken_or_left_its_range_is_replaced() -> None:
    old = ipaddress.ip_address("10.96.7.7")
    assert allocate(["a/x"], [V4], [old], {"a/x": (old,)})["a/x"] != (old,)
    moved = allocate(["a/x"], [NET("10.97.0.0/16")], [], {"a/x": (old,)})["a/x"]
    assert moved[0] in NET("10.97.0.0/16")


def test_first_addresses_are_left_to_people() -> None:
    found = allocate([f"a/{n}" for n in range(300)], [V4], [], {})
    assert all(int(items[0]) - int(V4[0]) >= RESERVED for items in found.values())


def test_full_range_gives_none_and_small_ones_are_used_up() -> None:
    tiny = NET("192.0.2.0/29")
    found = allocate([f"a/{n}" for n in range(9)], [tiny], [], {})
    used = [items[0] for items in found.values() if items]
    assert len(used) == len(set(used)) == 6  # neither the network's nor the broadcast address
    assert sum(not items for items in found.values()) == 3
    assert allocate(["a/x"], [NET("192.0.2.1/32")], [], {}) == {"a/x": ()}


@given(st.sets(st.text("abc", min_size=1, max_size=3), max_size=20), st.integers(0, 19))
def test_removing_a_service_moves_no_other(keys: set[str], index: int) -> None:
    first = allocate(keys, [NET("192.0.2.0/27")], [], {})
    rest = keys - {sorted(keys)[index]} if index < len(keys) else keys
    second = allocate(rest, [NET("192.0.2.0/27")], [], first)
    assert all(second[key] == first[key] for key in rest if first[key])
