"""`make molecule`: runs the molecule scenarios of the roles, some side by side.

Each scenario's output goes to a file of its own; what is printed is one line per scenario and
the end of the output of those that failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "artifacts" / "molecule"
_TAIL_LINES = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one scenario ended."""

    name: str
    passed: bool
    seconds: float
    log: Path


def find_scenarios(roles: list[str]) -> list[tuple[str, str]]:
    """(role, scenario) of every scenario below roles/, or of the given roles only."""
    found = []
    for description in sorted((ROOT / "roles").glob("*/molecule/*/molecule.yml")):
        role, scenario = description.parents[2].name, description.parent.name
        if not roles or role in roles:
            found.append((role, scenario))
    return found


def run_scenario(role: str, scenario: str) -> Outcome:
    """Run one scenario from its destroy to its destroy."""
    name = f"{role}/{scenario}"
    log = LOGS / f"{role}-{scenario}.log"
    started_at = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(
            ["molecule", "test", "--scenario-name", scenario],
            cwd=ROOT / "roles" / role,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.monotonic() - started_at
    return Outcome(name=name, passed=done.returncode == 0, seconds=seconds, log=log)


def main() -> int:
    """Run scenarios; fail when one fails or when there is none."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time")
    parser.add_argument("roles", nargs="*", metavar="ROLE")
    options = parser.parse_args()
    scenarios = find_scenarios(options.roles)
    if not scenarios:
        print(f"molecule: no scenario found for {options.roles or 'any role'}", file=sys.stderr)
        return 1
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        for future in as_completed([pool.submit(run_scenario, *pair) for pair in scenarios]):
            outcome = future.result()
            outcomes.append(outcome)
            word = "passed" if outcome.passed else "FAILED"
            print(f"molecule {outcome.name:<32} {word} {outcome.seconds:6.1f} s", flush=True)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"\n---- {outcome.name}: end of {outcome.log}")
        print("\n".join(outcome.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]))
    print(f"molecule: {len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
