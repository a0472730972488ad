"""A failed test leaves one directory with everything its fixtures could tell, and prints it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import artifacts

ROOT = Path(__file__).parents[3]
FAILING = """
from tests.support.waits import Wait, wait_until


def test_it(evidence, tmp_path):
    (tmp_path / "recording.pcap").write_bytes(b"pcap")
    evidence.files.append(tmp_path / "recording.pcap")
    evidence.witnesses["journal.txt"] = lambda: "what the node said"
    evidence.witnesses["sockets.txt"] = lambda: 1 / 0
    wait_until(lambda: False, Wait(0.01, "it never happens"), what="the impossible")
"""


def test_failure_keeps_evidence_and_prints_its_path(tmp_path: Path) -> None:
    """A witness that fails does not silence the others."""
    module = tmp_path / f"test_failing_{os.getpid()}.py"
    module.write_text(FAILING)
    kept = artifacts.ROOT / f"{module.name}-test_it"
    options = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", str(ROOT / "pyproject.toml"), str(module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        assert done.returncode == 1, done.stdout
        assert str(kept) in done.stdout
        assert "the impossible: not within 0.01 s (it never happens)" in done.stdout
        assert (kept / "journal.txt").read_text() == "what the node said"
        assert "ZeroDivisionError" in (kept / "sockets.txt").read_text()
        assert (kept / "recording.pcap").read_bytes() == b"pcap"
        assert "the impossible" in (kept / "report.txt").read_text()
    finally:
        shutil.rmtree(kept, ignore_errors=True)
