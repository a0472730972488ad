"""PeerAuthentication to the policies that workloads list (istio-facts 5.7).

Precedence: mesh < namespace < workload < port; UNSET inherits; the oldest of a level wins. Lists
of policies are therefore given sorted, oldest first. DISABLE is PERMISSIVE: a ztunnel always
accepts mutual TLS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.constants import STRICT_POLICY_NAME
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    Rule,
    StringMatch,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metalmesh.model.resources.policies import PeerAuthentication

#: begins the names of policies made from one with port exceptions
CONVERTED_PREFIX: Final = "converted_peer_authentication_"
_ANYBODY: Final = (StringMatch(MatchKind.PRESENCE),)
#: matches a peer that did not prove an identity
_PLAINTEXT: Final = Match(not_principals=_ANYBODY)
_OPEN_MODES: Final = ("PERMISSIVE", "DISABLE")


def strict_authorization(root_namespace: str) -> Authorization:
    """The static policy of STRICT: refuse whoever did not prove an identity."""
    return _deny(STRICT_POLICY_NAME, root_namespace, (((_PLAINTEXT,),),))


def converted_name(policy: PeerAuthentication) -> str:
    """Name of the policy made from a PeerAuthentication with port exceptions."""
    return f"{CONVERTED_PREFIX}{policy.meta.name}"


def peer_authentication_keys(
    policies: Sequence[PeerAuthentication],
    root_namespace: str,
    namespace: str,
    labels: Mapping[str, str],
) -> tuple[str, ...]:
    """What a workload lists because of PeerAuthentication: nothing, or one policy key."""
    inherited = inherits_strict(policies, root_namespace, namespace)
    own = _workload_policy(policies, root_namespace, namespace, labels)
    if own is not None and convert_peer_authentication(own, inherited=inherited) is not None:
        return (f"{own.meta.namespace}/{converted_name(own)}",)
    strict = inherited if own is None else _is_strict(own, inherited=inherited)
    return (f"{root_namespace}/{STRICT_POLICY_NAME}",) if strict else ()


def inherits_strict(
    policies: Sequence[PeerAuthentication], root_namespace: str, namespace: str
) -> bool:
    """Whether a workload without a policy of its own is STRICT: namespace, then mesh."""
    found = _inherited_policy(policies, root_namespace, namespace)
    return found is not None and found.mode == "STRICT"


def effective_policy(
    policies: Sequence[PeerAuthentication],
    root_namespace: str,
    namespace: str,
    labels: Mapping[str, str],
) -> PeerAuthentication | None:
    """The policy that sets a workload's mode, ports aside; None when nobody sets one."""
    own = _workload_policy(policies, root_namespace, namespace, labels)
    if own is not None and own.mode != "UNSET":
        return own
    return _inherited_policy(policies, root_namespace, namespace)


def _inherited_policy(
    policies: Sequence[PeerAuthentication], root_namespace: str, namespace: str
) -> PeerAuthentication | None:
    for level in (namespace, root_namespace):
        for policy in policies:
            if policy.meta.namespace == level and not selects_workloads(policy):
                if policy.mode != "UNSET":
                    return policy
                break  # the oldest of a level counts
    return None


def convert_peer_authentication(
    policy: PeerAuthentication, *, inherited: bool
) -> Authorization | None:
    """A workload policy's port exceptions; None when there are none.

    ``inherited``: whether mesh and namespace are STRICT.
    """
    strict = _is_strict(policy, inherited=inherited)
    exceptions = _OPEN_MODES if strict else ("STRICT",)
    ports = sorted(port for port, mode in policy.port_modes.items() if mode in exceptions)
    if not ports:
        return None
    rules: tuple[Rule, ...]
    if strict:
        # one rule: plaintext AND not this port AND not that port
        rules = (((_PLAINTEXT,), *((Match(not_destination_ports=(port,)),) for port in ports)),)
    else:
        # one rule per port: plaintext to it
        rules = tuple(
            ((Match(not_principals=_ANYBODY, destination_ports=(port,)),),) for port in ports
        )
    return _deny(converted_name(policy), policy.meta.namespace, rules)


def selects_workloads(policy: PeerAuthentication) -> bool:
    """Whether the policy is for some workloads rather than for a namespace or the mesh."""
    return policy.selector is not None and not policy.selector.empty


def _workload_policy(
    policies: Sequence[PeerAuthentication],
    root_namespace: str,
    namespace: str,
    labels: Mapping[str, str],
) -> PeerAuthentication | None:
    """The oldest policy that selects the workload; in the root namespace none ever does."""
    if namespace == root_namespace:
        return None
    for policy in policies:
        selector = policy.selector
        if policy.meta.namespace != namespace or selector is None or selector.empty:
            continue
        if selector.matches(labels):
            return policy
    return None


def _is_strict(policy: PeerAuthentication, *, inherited: bool) -> bool:
    return inherited if policy.mode == "UNSET" else policy.mode == "STRICT"


def _deny(name: str, namespace: str, rules: tuple[Rule, ...]) -> Authorization:
    return Authorization(
        name=name,
        namespace=namespace,
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=rules,
    )
