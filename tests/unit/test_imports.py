"""The layers of DESIGN: lower ones never import higher ones, pure ones touch no I/O.

Read from the syntax trees of src/metalmesh, so a lazy import inside a function counts, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "metalmesh"

LAYERS = (
    {"constants", "errors", "proto", "__init__"},
    {"model"},
    {"policy", "routing", "render"},
    {"hbone", "http", "xds", "pki", "zds", "dns"},
    {"net", "service"},
    {"ztunnel", "waypoint", "controlplane", "node", "cli"},
)
"""From the bottom up; a part may import its own layer and those below."""

PURE = LAYERS[0] | LAYERS[1] | LAYERS[2] | LAYERS[3]
BANNED_MODULES = frozenset(
    {"asyncio", "socket", "ssl", "time", "os", "subprocess", "logging", "random"}
    | {"select", "selectors", "threading", "tempfile", "grpc"}
)
BANNED_CALLS = frozenset({"open", "print", "input"})

NOT_PART_OF_THE_MESH: dict[str, str] = {
    "proto/generate.py": "a developer's command that runs protoc; nothing imports it",
}
"""Module -> why the ban does not hold for it."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Path below the package and syntax tree of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.name.endswith("_pb2.py"):
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def part_of(relative: str) -> str:
    """The part of the package a module belongs to."""
    return relative.split("/")[0].removesuffix(".py")


def imported_modules(tree: ast.Module, relative: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything a module imports."""
    package = ["metalmesh", *relative.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, name
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def level_of(part: str) -> int | None:
    """Index of a part's layer."""
    return next((index for index, layer in enumerate(LAYERS) if part in layer), None)


def arrow_breaches(relative: str, tree: ast.Module) -> list[str]:
    """Imports of a higher layer, or of a part that no layer lists."""
    mine = level_of(part_of(relative))
    if mine is None:
        return [f"{relative}: {part_of(relative)!r} is in no layer; add it to LAYERS"]
    breaches = []
    for line, name in imported_modules(tree, relative):
        parts = name.split(".")
        theirs = level_of(parts[1]) if parts[0] == "metalmesh" and len(parts) > 1 else None
        if theirs is not None and theirs > mine:
            breaches.append(f"{relative}:{line}: imports {name} of a higher layer")
    return breaches


def purity_breaches(relative: str, tree: ast.Module) -> list[str]:
    """I/O in a pure or sans-IO module."""
    if part_of(relative) not in PURE or relative in NOT_PART_OF_THE_MESH:
        return []
    breaches = [
        f"{relative}:{line}: a pure module must not import {name}"
        for line, name in imported_modules(tree, relative)
        if name.split(".")[0] in BANNED_MODULES
    ]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in BANNED_CALLS
        ):
            breaches.append(f"{relative}:{node.lineno}: a pure module must not {node.func.id}")
    return breaches


def test_layers_import_downwards_only() -> None:
    """An arrow-breaking import is a failing test (DESIGN 4)."""
    found = [breach for relative, tree in modules() for breach in arrow_breaches(relative, tree)]
    assert not found, "\n".join(found)


def test_pure_layers_do_no_io() -> None:
    """No socket, clock, file, process or log below net and service (DESIGN 4)."""
    found = [breach for relative, tree in modules() for breach in purity_breaches(relative, tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("relative", "source", "breach"),
    [
        ("policy/l4.py", "from metalmesh.net import netns", "higher layer"),
        ("policy/l4.py", "def f():\n    from metalmesh.cli.main import main", "higher layer"),
        ("net/netns.py", "import metalmesh.ztunnel.main", "higher layer"),
        ("model/x.py", "from ..node import agent", "higher layer"),
        ("surprise/x.py", "import json", "in no layer"),
    ],
)
def test_a_broken_arrow_is_found(relative: str, source: str, breach: str) -> None:
    """Negative twin: the check above is not blind."""
    (found,) = arrow_breaches(relative, ast.parse(source))[:1]
    assert breach in found


@pytest.mark.parametrize(
    "source",
    ["import socket", "from os import path", "import asyncio.streams", "x = open('f')"],
)
def test_impurity_is_found(source: str) -> None:
    """Negative twin: the check above is not blind."""
    assert purity_breaches("hbone/x.py", ast.parse(source))
    assert not purity_breaches("net/x.py", ast.parse(source))
