"""``python -m tests.fuzz``: coverage-guided fuzzing of every parser, for some seconds each.

What is found is kept below ``artifacts/fuzz`` and printed; it belongs into ``tests/fuzz/found`` as
a file, from where the unit tests run it for ever.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts" / "fuzz"


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own; whether nothing was found."""
    from tests.fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="mm-fuzz-") as corpus:
        for number, seed in enumerate(TARGETS[name].seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.engine", name, corpus),
                *(f"-max_total_time={seconds}", f"-artifact_prefix={ARTIFACTS}/{name}-"),
                *("-timeout=5", "-rss_limit_mb=1024", "-max_len=4096", "-verbosity=0"),
            ],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    print(f"{name:16} {'ok' if done.returncode == 0 else 'FOUND SOMETHING'}", flush=True)
    if done.returncode:
        print(done.stderr[-4000:])
    return done.returncode == 0


def main() -> int:
    """Fuzz the targets named, or all."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    options = parser.parse_args()
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no target {min(unknown)}; there are {', '.join(TARGETS)}")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    results = [fuzz(name, options.seconds) for name in options.targets or TARGETS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
