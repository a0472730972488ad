"""One target under atheris; the arguments behind the name are libFuzzer's."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["metalmesh"]):
    from tests.fuzz.targets import run_target


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: run_target(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
