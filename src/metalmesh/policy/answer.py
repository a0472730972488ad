"""What ``metalmesh why`` says: an outcome, the ways a connection can take, and their steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metalmesh.policy.judge import Refusal


class Outcome(Enum):
    """What becomes of a connection."""

    ALLOWED = "allowed"
    DENIED = "denied"
    PLAINTEXT = "plaintext"
    PASSED_THROUGH = "passed through"
    UNREACHABLE = "unreachable"
    DEPENDS = "depends on the endpoint"


class Effect(Enum):
    """What a step does to the connection."""

    OK = "ok"
    STOP = "stop"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One decision on the way."""

    #: where it is taken: ``outbound``, ``route``, ``egress 15008``, ``authorization``, ...
    hop: str
    effect: Effect
    text: str
    #: ``Kind namespace/name`` of the object that decides, "" when none does
    object: str = ""
    #: index of the deciding rule in that object, -1 when it is not one rule
    rule: int = -1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "hop": self.hop,
            "effect": self.effect.value,
            "text": self.text,
            "object": self.object or None,
            "rule": self.rule if self.rule >= 0 else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """One way the connection can take: to one endpoint."""

    #: ``namespace/name`` of the endpoint, "" when nobody knows who has the address
    endpoint: str
    #: the machine it is on
    node: str
    #: ``ip:port`` that is dialled
    address: str
    #: ``ip:port`` of the application
    target: str
    outcome: Outcome
    steps: tuple[Step, ...]
    #: what NetworkPolicies do not admit; not part of the JSON-able form
    refusals: tuple[Refusal, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "endpoint": self.endpoint or None,
            "node": self.node or None,
            "address": self.address,
            "target": self.target,
            "outcome": self.outcome.value,
            "steps": [step.to_dict() for step in self.steps],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The whole explanation; ``steps`` come before the ways part."""

    source: str
    #: the source's machine, and its network namespace there
    node: str
    netns: str
    destination: str
    #: ``ip:port`` that the application asks for
    address: str
    outcome: Outcome
    steps: tuple[Step, ...]
    paths: tuple[Path, ...] = ()
    #: of a connection that leaves the mesh, as :attr:`Path.refusals`
    refusals: tuple[Refusal, ...] = ()

    @property
    def deciding(self) -> Step | None:
        """The step that ended the connection, or the last one that named an object."""
        steps = [*self.steps, *(step for path in self.paths for step in path.steps)]
        stops = [step for step in steps if step.effect is Effect.STOP]
        if stops:
            return stops[0]
        return next((step for step in reversed(steps) if step.object), None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        deciding = self.deciding
        return {
            "source": self.source,
            "node": self.node or None,
            "netns": self.netns or None,
            "destination": self.destination,
            "address": self.address,
            "outcome": self.outcome.value,
            "decidedBy": deciding.to_dict() if deciding else None,
            "steps": [step.to_dict() for step in self.steps],
            "paths": [path.to_dict() for path in self.paths],
        }


def render_answer(answer: Mapping[str, Any]) -> str:
    """The explanation for people, from an answer's JSON-able form."""
    lines = [f"{answer['source']} -> {answer['destination']}: {answer['outcome'].upper()}", ""]
    lines += _lines(answer["steps"], "  ")
    for path in answer["paths"]:
        title = f"endpoint {path['endpoint'] or 'unknown'} at {path['address']}"
        lines += ["", f"  {title}: {path['outcome']}", *_lines(path["steps"], "    ")]
    return "\n".join(lines) + "\n"


def _lines(steps: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    width = max((len(step["hop"]) for step in steps), default=0)
    return [f"{indent}{step['effect']:<4}  {step['hop']:<{width}}  {_text(step)}" for step in steps]


def _text(step: Mapping[str, Any]) -> str:
    if not step["object"]:
        return str(step["text"])
    rule = f" rule {step['rule']}" if step["rule"] is not None else ""
    return f"{step['object']}{rule}: {step['text']}"
