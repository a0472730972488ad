"""``python -m tests.chaos reloads|kills|control-plane-down``: faults under load, counted.

Needs a converged lab (LAB_NAME or ``default``). Results go to a JSON file and a table; the exit
status is 1 when something was lost that must not be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from lab.driver import Lab
from lab.driver.errors import LabError
from tests.chaos import control_plane_down, kills, reloads
from tests.chaos.report import Report
from tests.lab.cast import playing
from tests.support.machines import Machines
from tests.support.mesh import Mesh

SCENARIOS = {
    "reloads": reloads.run,
    "kills": kills.run,
    "control-plane-down": control_plane_down.run,
}


def main() -> int:
    """Run one scenario."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--minutes", type=int, default=10, help="of the outage (default: 10)")
    parser.add_argument("--output", type=Path, help="JSON file (default: artifacts/chaos-….json)")
    args = parser.parse_args()
    try:
        machines = Machines(Lab.open(os.environ.get("LAB_NAME", "default")))
    except LabError as error:
        parser.exit(2, f"no lab: {error}; `make lab` builds one\n")
    report = Report(args.scenario)
    try:
        mesh = Mesh(machines)
        with playing(mesh) as cast:
            amount = args.minutes if args.scenario == "control-plane-down" else args.rounds
            SCENARIOS[args.scenario](mesh, cast, amount, report)
    finally:
        machines.close()
    path = args.output or Path("artifacts") / f"chaos-{args.scenario}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    print(report.table())
    print(f"results: {path}")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
