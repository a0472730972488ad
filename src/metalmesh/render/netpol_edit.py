"""Add entries to lists inside a YAML file, and leave everything else as its author wrote it.

The parser tells where a list ends; the text is changed there. Comments, order and style stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from metalmesh.errors import MetalmeshError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def append_ports(
    text: str, policy: str, direction: str, rule: int, entries: Sequence[Mapping[str, Any]]
) -> str:
    """The text with ``entries`` appended to the ports of a rule of a NetworkPolicy.

    MetalmeshError when the text has no such list.
    """
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if document is not None and _is_policy(document, policy):
            ports = _descend(document, ("spec", direction, rule, "ports"))
            if isinstance(ports, yaml.SequenceNode) and ports.value:
                return _append(text, ports, entries)
    raise MetalmeshError(
        f"NetworkPolicy {policy}: spec.{direction}[{rule}].ports is not written out in this file; "
        "add the port by hand"
    )


def _is_policy(document: yaml.Node, key: str) -> bool:
    namespace, _, name = key.rpartition("/")
    own = _scalar(_descend(document, ("metadata", "namespace"))) or "default"
    return (
        _scalar(_descend(document, ("kind",))) == "NetworkPolicy"
        and _scalar(_descend(document, ("metadata", "name"))) == name
        and own == namespace
    )


def _scalar(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _descend(node: yaml.Node, path: Sequence[str | int]) -> yaml.Node | None:
    found: yaml.Node | None = node
    for step in path:
        if isinstance(step, int):
            items = found.value if isinstance(found, yaml.SequenceNode) else []
            found = items[step] if step < len(items) else None
        elif isinstance(found, yaml.MappingNode):
            found = next((value for key, value in found.value if key.value == step), None)
        else:
            return None
    return found


def _append(text: str, ports: yaml.SequenceNode, entries: Sequence[Mapping[str, Any]]) -> str:
    words = [_flow(entry) for entry in entries]
    if ports.flow_style:
        end = ports.value[-1].end_mark.index
        return text[:end] + "".join(f", {word}" for word in words) + text[end:]
    end = _end(ports.value[-1])
    rest = text.find("\n", end)
    before, after = (text + "\n", "") if rest < 0 else (text[: rest + 1], text[rest + 1 :])
    indent = " " * ports.start_mark.column
    return before + "".join(f"{indent}- {word}\n" for word in words) + after


def _end(node: yaml.Node) -> int:
    """Where the last thing written inside of a node ends; a block's own mark is further on."""
    if isinstance(node, yaml.ScalarNode) or getattr(node, "flow_style", False):
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _flow(entry: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(entry), default_flow_style=True, sort_keys=False).strip()
