"""Who may have which identity: join tokens, node tokens and the CA (issue: CA and tokens)."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.lab.cast import NAMESPACE, Cast
from tests.support import tls13
from tests.support.control_plane import ControlPlaneClient, client_of
from tests.support.machines import Machine
from tests.support.mesh import CONTROL_PLANE, Mesh
from tests.support.pki import Credentials
from tests.support.waits import WAITS, wait_until


@pytest.fixture
def node1(mesh: Mesh) -> Iterator[ControlPlaneClient]:
    """The control plane as node1 sees it, with node1's token."""
    with client_of(mesh.machines["node1"], mesh.control_plane) as client:
        yield client


@contextlib.contextmanager
def refused(mesh: Mesh, *reason: str) -> Iterator[None]:
    """The call must fail and tell the caller nothing; the audit log has the reason."""
    log = mesh.control_plane.journal(CONTROL_PLANE)
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, caught.value.details()
    assert not any(word in (caught.value.details() or "") for word in reason)
    log.wait("refused", *reason)


@contextlib.contextmanager
def unauthenticated() -> Iterator[None]:
    """The call must fail before anything is looked at."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, caught.value.details()


def join_token(mesh: Mesh, node: str) -> str:
    """A join token as the play mints it."""
    directory = mesh.settings["tokens_dir"]
    command = f"metalmesh token create --node {node} --tokens-dir {directory}"
    return metalmesh(mesh.control_plane, command).strip().splitlines()[-1]


def metalmesh(machine: Machine, command: str) -> str:
    """Run the installed command, as the user of the control plane."""
    unit = machine.unit(CONTROL_PLANE, "ExecStart", "User")
    program = unit["ExecStart"].split("argv[]=")[1].split()[0]
    program = program.rsplit("/", 1)[0] + "/" + command
    return machine.sh(f"runuser -u {unit['User']} -- {program}")


def uris(credentials: Credentials) -> tuple[str, ...]:
    """URI SANs of a leaf."""
    leaf = x509.load_pem_x509_certificates(credentials.chain)[0]
    return tls13.leaf_uris((leaf.public_bytes(Encoding.DER),))


def test_node_gets_identities_placed_on_it(cast: Cast, node1: ControlPlaneClient) -> None:
    """Positive twin: the identity of a workload of node1, exactly that one."""
    assert uris(node1.certificate(cast.client.identity)) == (cast.client.identity,)


@pytest.mark.parametrize(
    "identity",
    ["{server}", "spiffe://cluster.local/ns/nobody/sa/nobody", "spiffe://elsewhere/ns/proof/sa/client"],
    ids=["of another node", "of nobody", "of another trust domain"],
)  # fmt: skip
def test_node_is_refused_other_identities(
    mesh: Mesh, cast: Cast, node1: ControlPlaneClient, identity: str
) -> None:
    """The caller learns nothing; the control plane's log has the reason (facts 4)."""
    wanted = identity.format(server=cast.server.identity)
    with refused(mesh, wanted, 'node="node1"'):
        node1.certificate(wanted)


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_without_a_node_token_nothing_is_signed(
    cast: Cast, node1: ControlPlaneClient, token: str
) -> None:
    """No token, or a wrong one: unauthenticated."""
    with unauthenticated():
        node1.certificate(cast.client.identity, token=token)


def test_forged_node_token_is_refused(cast: Cast, node1: ControlPlaneClient) -> None:
    """A token with another signature, or another node in it, is not ours."""
    head, claims, signature = node1.token.split(".")
    flipped = signature[:-8] + ("A" if signature[-8] != "A" else "B") + signature[-7:]
    for forged in (f"{head}.{claims}.{flipped}", f"{head}.{claims[:-6]}AAAAAA.{signature}"):
        with unauthenticated():
            node1.certificate(cast.client.identity, token=forged)


def test_node_token_is_renewed(cast: Cast, node1: ControlPlaneClient) -> None:
    """The node agent's way to keep its token fresh; the new one works."""
    answer = node1.renew()
    assert answer.expires_at > time.time() + 600
    assert uris(node1.certificate(cast.client.identity, token=answer.node_token))


def test_join_token_works_once(mesh: Mesh, node1: ControlPlaneClient) -> None:
    """One node, one use: a replay is refused, whoever tries."""
    token = join_token(mesh, "node1")
    assert node1.join(token, "node1").node_token
    for name in ("node1", "node2"):
        with refused(mesh, "was used already"):
            node1.join(token, name)


def test_join_token_is_bound_to_its_node(mesh: Mesh, node1: ControlPlaneClient) -> None:
    """A token minted for node1 does not let node2 in, and is not used up by the attempt."""
    token = join_token(mesh, "node1")
    with refused(mesh, "is bound to node 'node1', not 'node2'"):
        node1.join(token, "node2")
    assert node1.join(token, "node1").node_token


def test_expired_join_token_is_refused(mesh: Mesh, node1: ControlPlaneClient) -> None:
    """An hour after it was minted it is worthless (the record's clock is set back)."""
    token = join_token(mesh, "node1")
    directory = mesh.control_plane.path(mesh.settings["tokens_dir"])
    (record,) = [path for path in directory.iterdir() if token.split(".")[0] in path.name]
    content = json.loads(record.read_text())
    content["created_at"] -= 7200
    content["expires_at"] -= 7200
    record.write_text(json.dumps(content))
    with refused(mesh, "expired 360"):  # 3600 s ago and what the test took since
        node1.join(token, "node1")


def test_guessed_join_token_is_refused(mesh: Mesh, node1: ControlPlaneClient) -> None:
    """The right id with another secret, and nonsense."""
    token = join_token(mesh, "node1")
    wrong = f"{token.split('.')[0]}.{secrets.token_urlsafe(32)}"
    for guess, reason in ((wrong, "wrong secret"), ("nonsense", "malformed"), ("", "malformed")):
        with refused(mesh, reason):
            node1.join(guess, "node1")


def test_store_is_the_authority_for_placement(
    mesh: Mesh, cast: Cast, node1: ControlPlaneClient
) -> None:
    """Moving a workload in the store moves the right to its identity."""
    moved = dict(cast.plain.entry)
    metadata = dict(moved["metadata"], name="wanderer")
    metadata["annotations"] = {"ambient.metalmesh.io/node": "node2"}
    spec = dict(moved["spec"], address="10.244.2.250", serviceAccount="wanderer")
    moved |= {"metadata": metadata, "spec": spec}
    identity = f"spiffe://{cast.client.trust_domain}/ns/{NAMESPACE}/sa/wanderer"
    with mesh.applied(moved), client_of(mesh.machines["node2"], mesh.control_plane) as node2:
        _eventually_signed(node2, identity)
        with refused(mesh, identity, 'node="node1"'):
            node1.certificate(identity)


def _eventually_signed(client: ControlPlaneClient, identity: str) -> None:
    def signed() -> bool:
        try:
            return uris(client.certificate(identity)) == (identity,)
        except grpc.RpcError:
            return False

    wait_until(signed, WAITS["policy"], what=f"{identity} signed for its node")
