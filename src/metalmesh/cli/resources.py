"""Resources that a verb works on: files, or what the control plane of this machine has in force."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.cli.check_config import load_mapping
from metalmesh.constants import CONFIG_DIR
from metalmesh.controlplane.admission import Scan, admit
from metalmesh.controlplane.compute import Computation, ComputeOptions, compute
from metalmesh.controlplane.config import ControlPlaneConfig, parse_config
from metalmesh.controlplane.state import StateDirectory
from metalmesh.controlplane.store import SUFFIXES
from metalmesh.errors import MetalmeshError, ResourceError
from metalmesh.model.resources import ParsedObject, parse_documents

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from metalmesh.controlplane.snapshot import Admission

_Found = tuple[ParsedObject | ResourceError, ...]
DEFAULT_CONFIG: Final = Path(CONFIG_DIR) / "controlplane.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Resources and what they make."""

    admission: Admission
    options: ComputeOptions
    computation: Computation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose the resources."""
    parser.add_argument(
        "--resources", type=Path, metavar="FILE|DIR", action="append",
        help="these files, without any mesh; default: what this machine's control plane serves",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="of the control plane; %(default)s"
    )


def load(args: argparse.Namespace) -> Loaded:
    """The resources that the options choose."""
    if args.resources:
        return load_files(map(str, args.resources), _file_options(args.config))
    return load_live(read_config(args.config))


def read_config(path: Path) -> ControlPlaneConfig:
    """The control plane's configuration on this machine."""
    if not path.exists():
        raise MetalmeshError(
            f"{path} is not there: no control plane on this machine; use --host or -i to ask "
            "another one, or --resources DIR"
        )
    return parse_config(load_mapping(str(path)), str(path))


def _file_options(path: Path) -> ComputeOptions:
    """Those of this machine's control plane, else its defaults."""
    if path.exists():
        return read_config(path).compute_options
    return ControlPlaneConfig(server_names=()).compute_options


def load_live(config: ControlPlaneConfig) -> Loaded:
    """What is in force: the last good version of everything, with its addresses."""
    from metalmesh.controlplane.snapshot import Admission

    state = StateDirectory(config.state_dir)
    objects, errors = state.load_objects()
    before = Computation(vips=state.load_vips())
    options = config.compute_options
    return Loaded(
        admission=Admission(objects, tuple(errors)),
        options=options,
        computation=compute(objects, options, before),
    )


def load_files(paths: Iterable[str], options: ComputeOptions) -> Loaded:
    """What the control plane would make of these files, were they its store."""
    files: dict[str, _Found] = {}
    unreadable: dict[str, str] = {}
    for path in _expand(paths, unreadable):
        _read(path, files, unreadable)
    admission = admit(Scan(files, unreadable), {}, datetime.now(UTC).isoformat())
    return Loaded(
        admission=admission, options=options, computation=compute(admission.objects, options)
    )


def read_files(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Path and text of every file meant; one that cannot be read is an error."""
    unreadable: dict[str, str] = {}
    found = []
    for path in _expand(paths, unreadable):
        try:
            data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            found.append((path, data.decode()))
        except OSError as error:
            unreadable[path] = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError as error:
            unreadable[path] = f"not UTF-8 ({error.reason})"
    if unreadable:
        raise MetalmeshError("; ".join(f"{path}: {why}" for path, why in unreadable.items()))
    return found


def _expand(paths: Iterable[str], unreadable: dict[str, str]) -> Iterator[str]:
    """The files meant: a directory stands for its YAML files, hidden ones excluded."""

    def note(error: OSError) -> None:
        unreadable[str(error.filename)] = f"cannot be read: {error.strerror}"

    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        for directory, below, names in os.walk(path, onerror=note):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    yield str(Path(directory) / name)


def _read(path: str, files: dict[str, _Found], unreadable: dict[str, str]) -> None:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        unreadable[path] = f"cannot be read: {error.strerror}"
        return
    try:
        files[path] = tuple(parse_documents(data.decode(), path))
    except UnicodeDecodeError as error:
        files[path] = (ResourceError(path, "", "", f"not UTF-8 ({error.reason})"),)
