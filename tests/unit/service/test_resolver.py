"""Names by the machine's own resolver."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from metalmesh.service.resolver import resolve_name


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("192.0.2.5", 4, "192.0.2.5"),
        ("192.0.2.5", 6, "192.0.2.5"),
        ("2001:db8::5", 6, "2001:db8::5"),
    ],
)
def test_address_is_found(name: str, family: int, expected: str) -> None:
    assert asyncio.run(resolve_name(name, family)) == ip_address(expected)


@pytest.mark.parametrize("name", ["", "a" * 64 + ".invalid", "..", "nobody.invalid"])
def test_name_without_answer_is_none(name: str) -> None:
    assert asyncio.run(resolve_name(name, 4)) is None
