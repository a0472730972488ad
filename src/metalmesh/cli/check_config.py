"""``metalmesh check-config FILE``: check a service's configuration file before it is used."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from metalmesh.errors import ConfigError

if TYPE_CHECKING:
    import argparse

#: component -> package whose ``config`` module has ``parse_config``
COMPONENTS: Final = ("controlplane", "node", "ztunnel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("file", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Check; say so when it is good."""
    values = load_mapping(args.file)
    component = values.get("component")
    if component not in COMPONENTS:
        raise ConfigError(
            f"{args.file}: component: must be one of {', '.join(COMPONENTS)}, is {component!r}"
        )
    config = importlib.import_module(f"metalmesh.{component}.config")
    if component == "ztunnel":
        config.parse_config(values, args.file, os.environ)
    else:
        config.parse_config(values, args.file)
    sys.stdout.write(f"{args.file}: valid configuration of {component}\n")
    return 0


def load_mapping(path: str) -> dict[str, Any]:
    """Read a YAML file that holds one mapping."""
    try:
        values = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values")
    return values
