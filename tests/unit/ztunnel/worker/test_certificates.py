"""Contexts from PEM, identities from certificates, and connections that wait for them."""

from __future__ import annotations

import pytest

from metalmesh.errors import CertificateError
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker import certificates as ct
from metalmesh.ztunnel.worker.loop import Loop
from tests.support.pki import CertificateAuthority

IDENTITY = "spiffe://cluster.local/ns/a/sa/b"


def message(identity: str = IDENTITY, **changes: str) -> m.Certificate:
    """A certificate as main sends it."""
    leaf = CertificateAuthority().leaf(identity)
    values = {"chain_pem": leaf.chain, "key_pem": leaf.key, "roots_pem": leaf.roots}
    texts = {name: value.decode() for name, value in values.items()}
    return m.Certificate(identity=identity, **{**texts, **changes})


def test_credentials_are_for_tls_1_3_with_client_certificates() -> None:
    credentials = ct.make_credentials(message(), "")
    assert str(credentials.identity) == IDENTITY
    for context in (credentials.server, credentials.client):
        assert context.minimum_version == context.maximum_version == 0x0304
        assert context.verify_mode == 2
    assert credentials.server.num_tickets == 0


@pytest.mark.parametrize(
    "changes",
    [{"chain_pem": "x"}, {"key_pem": ""}, {"roots_pem": "nonsense"}, {"identity": "spiffe://x"}],
)
def test_bad_material_names_the_identity_and_not_the_key(changes: dict[str, str]) -> None:
    good = message()
    identity = changes.get("identity", good.identity)
    bad = message(**{key: value for key, value in changes.items() if key != "identity"})
    bad = m.Certificate(
        identity=identity, chain_pem=bad.chain_pem, key_pem=bad.key_pem, roots_pem=bad.roots_pem
    )
    with pytest.raises(CertificateError, match=f"certificate of {identity}") as caught:
        ct.make_credentials(bad, "")
    assert "PRIVATE KEY" not in str(caught.value)


def test_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(CertificateError):
        ct.make_credentials(message(key_pem=message().key_pem), "")


class Peer:
    """An SSLObject as far as identities go."""

    def __init__(self, *names: tuple[str, str]) -> None:
        self._names = names

    def getpeercert(self) -> dict[str, object]:
        return {"subjectAltName": self._names}


def test_only_strict_spiffe_uris_count() -> None:
    peer = Peer(
        ("DNS", "spiffe://cluster.local/ns/a/sa/b"),
        ("URI", "https://example.org"),
        ("URI", "spiffe://cluster.local/ns/a/sa/b/extra"),
        ("URI", "spiffe://cluster.local/ns/a/sa/c"),
        ("URI", "spiffe://other/ns/a/sa/d"),
    )
    found = [str(item) for item in ct.peer_identities(peer)]  # type: ignore[arg-type]
    assert found == ["spiffe://cluster.local/ns/a/sa/c", "spiffe://other/ns/a/sa/d"]
    assert ct.peer_identities(Peer()) == []  # type: ignore[arg-type]


class Waiting:
    """Records how a wait ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[object, str]] = []

    def __call__(self, credentials: object, error: str) -> None:
        self.ends.append((credentials, error))


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def store(asked: list[str]) -> ct.CertificateStore:
    return ct.CertificateStore(Loop(), asked.append)


def test_waiters_share_one_question_and_one_answer(store, asked) -> None:
    waiters = [Waiting() for _ in range(3)]
    for waiter in waiters:
        store.wait(IDENTITY, waiter)
    assert asked == [IDENTITY]
    credentials = ct.make_credentials(message(), "")
    store.put(credentials)
    assert [waiter.ends for waiter in waiters] == [[(credentials, "")]] * 3
    assert store.get(IDENTITY) is credentials


def test_failure_reaches_the_waiters_and_keeps_what_was_there(store, asked) -> None:
    credentials = ct.make_credentials(message(), "")
    store.put(credentials)
    waiter = Waiting()
    store.wait("spiffe://cluster.local/ns/x/sa/y", waiter)
    store.fail("spiffe://cluster.local/ns/x/sa/y", "the CA is away")
    store.fail(IDENTITY, "cannot renew")
    assert waiter.ends == [(None, "the CA is away")]
    assert store.get(IDENTITY) is credentials


def test_waiting_is_bounded(store, monkeypatch) -> None:
    monkeypatch.setattr(ct, "MAX_WAITING", 2)
    waiters = [Waiting() for _ in range(3)]
    for waiter in waiters:
        store.wait(IDENTITY, waiter)
    assert [len(waiter.ends) for waiter in waiters] == [0, 0, 1]
    assert "wait for certificates already" in waiters[2].ends[0][1]


def test_waiting_ends_after_10_seconds(asked, monkeypatch) -> None:
    monkeypatch.setattr(ct, "WAIT_SECONDS", 0.01)
    loop = Loop()
    store = ct.CertificateStore(loop, asked.append)
    waiter = Waiting()
    store.wait(IDENTITY, waiter)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert waiter.ends[0][0] is None
    assert IDENTITY in waiter.ends[0][1]
    store.wait(IDENTITY, Waiting())
    assert asked == [IDENTITY, IDENTITY]  # asked again after giving up
