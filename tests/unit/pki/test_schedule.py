"""The client's certificate schedule (istio-facts 4), with the clock in our hands."""

from __future__ import annotations

import pytest

from metalmesh.model.identity import SignedBy
from metalmesh.pki.schedule import CONCURRENT_REQUESTS, Priority, SvidSchedule
from metalmesh.pki.svid import Svid

A = "spiffe://cluster.local/ns/shop/sa/a"
B = "spiffe://cluster.local/ns/shop/sa/b"
C = "spiffe://cluster.local/ns/shop/sa/c"
DAY = 86_400.0


def svid(identity: str, not_before: float, life: float = DAY) -> Svid:
    return Svid(
        identity=identity,
        chain_pem="chain",
        key_pem="key",
        roots_pem="roots",
        signed_by=SignedBy(frozenset(), b""),
        not_before=not_before,
        not_after=not_before + life,
    )


@pytest.fixture
def schedule() -> SvidSchedule:
    return SvidSchedule(lambda: 0.0)


def issue(schedule: SvidSchedule, identity: str, now: float) -> None:
    schedule.want(identity, Priority.WARMUP, now)
    assert schedule.start_due(now) == [identity]
    assert schedule.succeeded(identity, svid(identity, now), now)


def test_wanted_identity_is_requested_once(schedule: SvidSchedule) -> None:
    schedule.want(A, Priority.WARMUP, 100)
    schedule.want(A, Priority.WARMUP, 100)
    assert schedule.state(A, 100) == "Initializing"
    assert schedule.start_due(100) == [A]
    assert schedule.start_due(200) == []


def test_connections_go_before_prefetch_and_renewal(schedule: SvidSchedule) -> None:
    """A repeated wish can only raise the priority."""
    issue(schedule, C, 0)
    now = DAY / 2
    schedule.want(A, Priority.WARMUP, now - 10)
    schedule.want(B, Priority.WARMUP, now)
    schedule.want(B, Priority.REAL_TIME, now)
    schedule.want(B, Priority.WARMUP, now)
    assert schedule.start_due(now) == [B, A, C]


def test_at_most_eight_requests_are_under_way(schedule: SvidSchedule) -> None:
    names = [f"spiffe://cluster.local/ns/shop/sa/s{n:02}" for n in range(10)]
    for name in names:
        schedule.want(name, Priority.WARMUP, 0)
    first = schedule.start_due(0)
    assert first == names[:CONCURRENT_REQUESTS]
    assert schedule.start_due(0) == []
    schedule.succeeded(first[0], svid(first[0], 0), 0)
    assert schedule.start_due(0) == [names[8]]


def test_renewal_is_due_at_half_of_the_life(schedule: SvidSchedule) -> None:
    issue(schedule, A, 1000)
    assert schedule.next_deadline() == 1000 + DAY / 2
    assert schedule.start_due(1000 + DAY / 2 - 1) == []
    assert schedule.start_due(1000 + DAY / 2) == [A]
    assert schedule.held(A, 1000 + DAY / 2) is not None, "the old one serves meanwhile"


def test_ca_outage_while_a_certificate_is_valid_concerns_nobody(schedule: SvidSchedule) -> None:
    """An hour without CA: every failure is retried by backoff, the certificate stays."""
    issue(schedule, A, 0)
    now = DAY / 2
    delays = []
    while now < DAY / 2 + 3600:
        assert schedule.start_due(now) == [A]
        assert not schedule.failed(A, "CA is down", now)
        assert schedule.state(A, now) == "Available"
        deadline = schedule.next_deadline()
        assert deadline is not None
        delays.append(deadline - now)
        now = deadline
    assert delays[:5] == [1, 2, 4, 8, 16]
    assert max(delays) == 150


def test_failure_without_certificate_is_unavailable_and_retried(schedule: SvidSchedule) -> None:
    schedule.want(A, Priority.REAL_TIME, 0)
    schedule.start_due(0)
    assert schedule.failed(A, "refused", 0), "callers must be told"
    assert schedule.state(A, 0) == "Unavailable: refused"
    assert schedule.next_deadline() == 1
    schedule.start_due(1)
    schedule.failed(A, "refused", 1)
    assert schedule.next_deadline() == 3
    schedule.start_due(3)
    schedule.succeeded(A, svid(A, 3), 3)
    assert schedule.error(A) == ""
    assert schedule.state(A, 3) == "Available"


@pytest.mark.parametrize(("jitter", "delay"), [(-1.0, 0.8), (1.0, 1.2)])
def test_backoff_is_spread_by_a_fifth(jitter: float, delay: float) -> None:
    schedule = SvidSchedule(lambda: jitter)
    schedule.want(A, Priority.WARMUP, 0)
    schedule.start_due(0)
    schedule.failed(A, "refused", 0)
    assert schedule.next_deadline() == pytest.approx(delay)


def test_retry_comes_no_later_than_expiry(schedule: SvidSchedule) -> None:
    schedule.want(A, Priority.WARMUP, 0)
    schedule.start_due(0)
    schedule.succeeded(A, svid(A, 0, life=100), 0)
    for now in (50, 60, 70, 80, 90, 99):
        schedule.start_due(now)
        schedule.failed(A, "down", now)
    assert schedule.next_deadline() == 100


def test_expired_certificate_is_dropped_and_named(schedule: SvidSchedule) -> None:
    issue(schedule, A, 0)
    assert schedule.expired(DAY - 1) == []
    assert schedule.expired(DAY) == [A]
    assert schedule.held(A, DAY) is None
    assert schedule.state(A, DAY) == "Unavailable: certificate expired"
    assert schedule.start_due(DAY) == [A]


def test_returning_ca_is_asked_at_once(schedule: SvidSchedule) -> None:
    schedule.want(A, Priority.WARMUP, 0)
    now = 0.0
    for _ in range(6):
        schedule.start_due(now)
        schedule.failed(A, "down", now)
        now = schedule.next_deadline() or 0
    schedule.retry_now(now - 20)
    assert schedule.start_due(now - 20) == [A]


def test_certificate_past_its_half_life_is_not_requested_in_a_loop(schedule: SvidSchedule) -> None:
    """A CA that backdates more than it lets live must not be flooded."""
    schedule.want(A, Priority.WARMUP, 1000)
    schedule.start_due(1000)
    schedule.succeeded(A, svid(A, 0, life=1500), 1000)
    assert schedule.start_due(1000) == []
    assert schedule.next_deadline() == 1001


def test_forgotten_identity_takes_no_late_answer(schedule: SvidSchedule) -> None:
    schedule.want(A, Priority.WARMUP, 0)
    schedule.start_due(0)
    schedule.forget(A)
    assert not schedule.succeeded(A, svid(A, 0), 0)
    assert not schedule.failed(A, "late", 0)
    assert schedule.next_deadline() is None


def test_renewal_can_be_asked_for_early_and_keeps_the_old_one_in_use(
    schedule: SvidSchedule,
) -> None:
    """The CA has changed; a request that is under way is not repeated here."""
    schedule.want(A, Priority.WARMUP, 0)
    assert schedule.start_due(0) == [A]
    schedule.renew(A, 5)
    assert schedule.start_due(5) == []
    schedule.succeeded(A, svid(A, 0), 5)
    schedule.renew(A, 100)
    schedule.renew(A, 200)
    schedule.renew(B, 100)
    assert schedule.start_due(99) == []
    assert schedule.held(A, 100) is not None
    assert schedule.start_due(100) == [A]
