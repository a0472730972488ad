"""Files stay under 400 lines, functions under 40, classes under 16 public methods.

An exception is an entry below with its reason; one that is no longer needed fails the test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREES = ("src/metalmesh", "lab", "tests", "collections/ansible_collections/metalmesh/ambient")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_PUBLIC_METHODS = 15

ALLOWED: dict[str, str] = {}
"""Breach (``path`` or ``path:name``) -> why it may stay."""


def python_files() -> Iterator[Path]:
    """Every Python file we write ourselves."""
    for tree in TREES:
        for path in sorted((ROOT / tree).rglob("*.py")):
            if not path.name.endswith("_pb2.py"):
                yield path


def breaches(name: str, source: str) -> Iterator[tuple[str, str]]:
    """Key and description of everything in a file that is too large."""
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        yield name, f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name}:{node.name}", f"{length} lines"
        elif isinstance(node, ast.ClassDef):
            public = [
                item
                for item in node.body
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                and not item.name.startswith("_")
            ]
            if len(public) > MAX_PUBLIC_METHODS:
                yield f"{name}:{node.name}", f"{len(public)} public methods"


def test_nothing_outgrows_its_budget() -> None:
    """Good trees keep functions near ten lines; the one file that gets away is stopped here."""
    found = {
        key: what
        for path in python_files()
        for key, what in breaches(str(path.relative_to(ROOT)), path.read_text())
    }
    too_large = [f"{key}: {what}" for key, what in found.items() if key not in ALLOWED]
    assert not too_large, "\n".join(["split these:", *too_large])
    stale = sorted(set(ALLOWED) - set(found))
    assert not stale, f"no longer too large, remove from ALLOWED: {stale}"


def test_breaches_are_found() -> None:
    """Negative twin: each kind of breach is reported."""
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(16))
    source = f"def long():\n{body}\nclass Wide:\n{methods}" + "\n" * MAX_FILE_LINES
    assert [key for key, _ in breaches("f.py", source)] == ["f.py", "f.py:long", "f.py:Wide"]
