"""``metalmesh node``: run the agent; make, remove and list the namespaces of workloads.

``netns up`` runs before an application starts, at every boot: it imports nothing it does not need.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.constants import CONFIG_DIR
from metalmesh.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from metalmesh.node.config import NodeConfig

DEFAULT_CONFIG: Final = f"{CONFIG_DIR}/node.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run_parser = actions.add_parser("run", help="run the node agent")
    run_parser.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")
    netns = actions.add_parser("netns", help="network namespaces of workloads")
    netns.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")
    verbs = netns.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("up", "make a workload's namespace, its capture and policies in force; or repair it"),
        ("down", "remove a workload's namespace and everything made for it"),
    ):
        verb_parser = verbs.add_parser(verb, help=text)
        verb_parser.add_argument("name", metavar="NAME", help="name of the namespace")
    verbs.add_parser("list", help="namespaces that are up or declared")
    workload = actions.add_parser("workload", help="whether a workload gets traffic")
    workload.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")
    words = workload.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("drain", "take a workload out of its services before its application stops"),
        ("ready", "put it back"),
    ):
        word = words.add_parser(verb, help=text)
        word.add_argument("name", metavar="NAME", help="name of its namespace (NS-NAME)")
        word.add_argument(
            "--timeout", type=float, default=10.0, help="seconds to wait for all proxies"
        )
    cleanup = actions.add_parser(
        "cleanup", help="remove what the agent made for the node itself, before uninstalling"
    )
    cleanup.add_argument("--config", default=DEFAULT_CONFIG, help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    config = _load_config(Path(args.config))
    if args.action == "run":
        from metalmesh.node.main import run_agent

        return run_agent(config)
    if args.action == "cleanup":
        return _cleanup(config)
    if args.action == "workload":
        return _announce(config, args)
    return _VERBS[args.verb](config, getattr(args, "name", ""))


def _load_config(path: Path) -> NodeConfig:
    import yaml

    from metalmesh.node.config import parse_config

    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return parse_config(yaml.load(text, Loader=loader), str(path))  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error


def _up(config: NodeConfig, name: str) -> int:
    from metalmesh.node.netns import bring_up
    from metalmesh.node.state import NodeState
    from metalmesh.node.workload_spec import load_directory

    state = NodeState(config.run_dir, config.state_dir)
    specs = load_directory(config.workloads_dir, config.cluster_id, state.running())
    workload = specs.workloads.get(name)
    for error in specs.errors:
        sys.stderr.write(f"metalmesh node: {error}\n")
    if workload is None:
        raise ResourceError(
            str(config.workloads_dir),
            "",
            "",
            f"no valid WorkloadEntry with netns {name}; it is declared in a file named {name}.yaml",
        )
    return _report(name, bring_up(workload, config, state))


def _announce(config: NodeConfig, args: argparse.Namespace) -> int:
    """An application must be able to stop without us: what went wrong is said and no failure."""
    import time

    from metalmesh.node.control import SETTLE_SECONDS, announce

    stopping = args.verb == "drain"
    problem = announce(config, args.name, stopping=stopping, timeout_seconds=args.timeout)
    if problem:
        sys.stderr.write(f"metalmesh node: {args.name}: {problem}\n")
    elif stopping:
        time.sleep(SETTLE_SECONDS)
    return 0


def _down(config: NodeConfig, name: str) -> int:
    from metalmesh.node.netns import take_down
    from metalmesh.node.state import NodeState

    return _report(name, take_down(name, NodeState(config.run_dir, config.state_dir)))


def _list(config: NodeConfig, _: str) -> int:
    from metalmesh.node.state import NodeState
    from metalmesh.node.workload_spec import load_directory

    records = NodeState(config.run_dir, config.state_dir).records()
    specs = load_directory(config.workloads_dir, config.cluster_id)
    rows = [("NETNS", "STATE", "LINK", "ADDRESSES", "CAPTURED")]
    for name in sorted({*records, *specs.workloads}):
        record, spec = records.get(name), specs.workloads.get(name)
        if record is not None:
            status = "up" if spec is not None else "up, not declared"
            addresses, captured = ",".join(record.addresses), record.captured
        else:
            assert spec is not None
            status = "declared"
            addresses, captured = ",".join(map(str, spec.addresses)), spec.captured
        link = (record.link if record is not None else "") or "-"
        rows.append((name, status, link, addresses, "yes" if captured else "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _cleanup(config: NodeConfig) -> int:
    from metalmesh.node.node_network import remove_all
    from metalmesh.node.state import NodeState

    state = NodeState(config.run_dir, config.state_dir)
    up = sorted(state.records())
    if up:
        raise ConfigError(
            f"namespaces {', '.join(up)} are still up and would lose their policies; stop their "
            "metalmesh-netns@ units first"
        )
    return _report(config.node_name, remove_all(config, state))


def _report(name: str, changes: list[str]) -> int:
    sys.stdout.write(f"{name}: {'; '.join(changes) if changes else 'unchanged'}\n")
    return 0


_VERBS: Final[dict[str, Callable[[NodeConfig, str], int]]] = {
    "up": _up,
    "down": _down,
    "list": _list,
}
