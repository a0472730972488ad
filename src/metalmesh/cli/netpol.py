"""``metalmesh netpol``: what NetworkPolicies admit, what they forget, and what is made of them."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalmesh.cli import remote, resources
from metalmesh.cli.output import print_data
from metalmesh.controlplane.world import make_world
from metalmesh.errors import MetalmeshError
from metalmesh.model.network_policy import Protocol
from metalmesh.model.resources import WorkloadEntry
from metalmesh.node.links import LinkPlan
from metalmesh.policy.answer import Outcome, render_answer
from metalmesh.policy.netpol_change import suggest_changes
from metalmesh.policy.netpol_lint import lint_network_policies
from metalmesh.policy.netpol_matrix import reach_matrix
from metalmesh.policy.network_policy_compile import port_protocol
from metalmesh.policy.why import explain
from metalmesh.policy.world import find_source, find_target
from metalmesh.render.netpol_edit import append_ports
from metalmesh.render.netpol_matrix import matrix_svg, matrix_table
from metalmesh.render.network_policy import BoundWorkload, render_network_policy
from metalmesh.render.wds import workload_uid

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from metalmesh.cli.resources import Loaded
    from metalmesh.policy.netpol_change import Change
    from metalmesh.policy.netpol_lint import Finding
    from metalmesh.policy.netpol_matrix import Port
    from metalmesh.policy.world import World

#: exit status of `explain` when the connection is refused, as of `why`
REFUSED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("explain", help="which rule decides, and what would admit it")
    one.add_argument("source", metavar="SRC", help="namespace/name of a workload, or an address")
    one.add_argument("destination", metavar="DST:PORT[/udp|/sctp]")
    one.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    one = actions.add_parser("lint", help="rules that forget the mesh's port 15008")
    one.add_argument("--fix", action="store_true", help="write the corrected files")
    one = actions.add_parser("matrix", help="who reaches whom")
    one.add_argument("-n", "--namespace", default="", help="only workloads of this namespace")
    one.add_argument("-o", "--output", choices=("table", "json", "yaml", "svg"), default="table")
    one = actions.add_parser("render", help="the packet rules of a node, as nft reads them")
    one.add_argument("node", metavar="NODE")
    for one in actions.choices.values():
        resources.add_arguments(one)
        remote.describe_options(one)


def run(args: argparse.Namespace) -> int:
    """Do one of the actions."""
    loaded = resources.load(args)
    for error in loaded.admission.errors:
        sys.stderr.write(f"not in force: {error}\n")
    world = make_world(loaded.admission.objects, loaded.computation, loaded.options)
    return {"explain": _explain, "lint": _lint, "matrix": _matrix, "render": _render}[args.action](
        args, loaded, world
    )


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """By what is in force there; files are this machine's."""
    if args.resources:
        raise MetalmeshError("files are read here: leave --host and -i out")
    return remote.run(target, words)


def _entries(loaded: Loaded) -> dict[str, WorkloadEntry]:
    """WorkloadEntries by uid."""
    found = (item.resource for item in loaded.admission.objects.values())
    return {
        workload_uid(entry, loaded.options.mesh): entry
        for entry in found
        if isinstance(entry, WorkloadEntry)
    }


# --- explain ---------------------------------------------------------------------------------
def _explain(args: argparse.Namespace, loaded: Loaded, world: World) -> int:
    text, protocol = _protocol(args.destination)
    source = find_source(world.state, args.source)
    target = find_target(world.state, source, text)
    answer = explain(world, source, target, protocol=protocol, network_only=True)
    refusals = [*answer.refusals, *(item for path in answer.paths for item in path.refusals)]
    labels = {uid: entry.labels for uid, entry in _entries(loaded).items()}
    changes = suggest_changes(refusals, world, labels)
    data = {**answer.to_dict(), "changes": [change.to_dict() for change in changes]}
    if args.output == "text":
        sys.stdout.write(render_answer(data) + _change_text(changes))
    else:
        print_data(data, args.output)
    refused = {Outcome.DENIED, Outcome.UNREACHABLE, Outcome.DEPENDS}
    return REFUSED if answer.outcome in refused else 0


def _protocol(text: str) -> tuple[str, Protocol]:
    """``HOST:PORT`` and the protocol behind it."""
    address, slash, name = text.rpartition("/")
    if not slash or ":" in name:  # namespace/name:port
        return text, Protocol.TCP
    try:
        return address, Protocol(name.upper())
    except ValueError:
        raise MetalmeshError(
            f"destination {text!r}: protocol {name!r} is none of tcp, udp, sctp"
        ) from None


def _change_text(changes: Iterable[Change]) -> str:
    import yaml

    parts = []
    for change in changes:
        added = yaml.safe_dump(list(map(dict, change.entries)), sort_keys=False)
        indented = "".join(f"    {line}\n" for line in added.splitlines())
        parts.append(f"  NetworkPolicy {change.policy}, append to {change.field}:\n{indented}")
    return "\nwhat would admit it:\n" + "".join(parts) if parts else ""


# --- lint ------------------------------------------------------------------------------------
def _lint(args: argparse.Namespace, loaded: Loaded, world: World) -> int:
    """Print findings and corrected files; 1 when something is left to do."""
    findings = lint_network_policies(world)
    by_file: dict[str, list[Finding]] = {}
    for finding in findings:
        source = loaded.admission.objects[f"NetworkPolicy {finding.policy}"].source
        by_file.setdefault(source, []).append(finding)
        sys.stdout.write(f"NetworkPolicy {finding.policy} ({source}): {finding.text}\n")
    if not findings:
        sys.stdout.write("every rule for captured workloads admits what the mesh needs\n")
    for source, found in by_file.items():
        _correct(Path(source), found, write=args.fix)
    return int(bool(findings) and not args.fix)


def _correct(path: Path, findings: list[Finding], *, write: bool) -> None:
    """Show the corrected file as a difference, or write it."""
    try:
        before = after = path.read_text()
        for finding in findings:
            entries = finding.change.entries
            after = append_ports(after, finding.policy, finding.direction, finding.rule, entries)
        if write:
            path.write_text(after)
    except OSError as error:
        raise MetalmeshError(f"{path}: {error.strerror}") from error
    if write:
        sys.stdout.write(f"{path}: corrected\n")
        return
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        str(path),
        f"{path} (corrected)",
    )
    sys.stdout.write("\n" + "".join(lines))


# --- matrix ----------------------------------------------------------------------------------
def _matrix(args: argparse.Namespace, loaded: Loaded, world: World) -> int:
    entries = _entries(loaded)
    workloads = [
        item
        for uid, item in sorted(world.state.workloads.items())
        if item.addresses and args.namespace in ("", item.namespace) and uid in entries
    ]
    ports = {uid: _ports(world, uid, entry) for uid, entry in entries.items()}
    rows = [[cell.to_dict() for cell in row] for row in reach_matrix(world, workloads, ports)]
    if args.output == "table":
        sys.stdout.write(matrix_table(rows))
    elif args.output == "svg":
        sys.stdout.write(matrix_svg(rows))
    else:
        print_data([cell for row in rows for cell in row], args.output)
    return 0


def _ports(world: World, uid: str, entry: WorkloadEntry) -> set[Port]:
    """What the workload itself names, and what services lead to on it."""
    services: Iterable[Mapping[int, int]] = world.state.workloads[uid].services.values()
    named = {(port_protocol(name), port) for name, port in entry.ports.items()}
    known = {number for _, number in named}
    led = {port for ports in services for port in ports.values() if port and port not in known}
    return named | {(Protocol.TCP, port) for port in led}


# --- render ----------------------------------------------------------------------------------
def _render(args: argparse.Namespace, loaded: Loaded, world: World) -> int:
    mine: dict[str, Any] = {
        uid: entry for uid, entry in _entries(loaded).items() if entry.node == args.node
    }
    if not mine:
        nodes = sorted({entry.node for entry in _entries(loaded).values() if entry.node})
        raise MetalmeshError(f"node {args.node!r} has no workload; those with: {', '.join(nodes)}")
    bound = [
        BoundWorkload(
            uid=uid,
            link=LinkPlan(entry.netns, entry.addresses).host_link,
            addresses=entry.addresses,
        )
        for uid, entry in mine.items()
    ]
    policies = [item for _, item in sorted(world.state.network_policies.items())]
    sys.stdout.write(render_network_policy(bound, policies))
    return 0
