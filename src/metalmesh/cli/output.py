"""Print data as JSON or YAML."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_data(value: Any, form: str) -> None:
    """Print ``value`` as ``json`` or ``yaml``."""
    if form == "json":
        sys.stdout.write(json.dumps(value, indent=4) + "\n")
        return
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    sys.stdout.write(yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True))
