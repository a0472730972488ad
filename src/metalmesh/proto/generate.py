"""Regenerate the message modules: ``python -m metalmesh.proto.generate`` (needs grpcio-tools)."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc


def main() -> int:
    """Compile every ``.proto`` beside this file; return protoc's exit status."""
    here = Path(__file__).parent
    root = here.parent.parent
    well_known = Path(protoc.__file__).parent / "_proto"
    sources = [str(path.relative_to(root)) for path in sorted(here.glob("*.proto"))]
    arguments = ["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={root}"]
    return int(protoc.main([*arguments, f"--pyi_out={root}", *sources]))


if __name__ == "__main__":
    sys.exit(main())
