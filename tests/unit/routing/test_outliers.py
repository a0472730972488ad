"""When endpoints are left out, and for how long."""

from __future__ import annotations

from metalmesh.routing.outliers import CONSECUTIVE_FAILURES, MAX_EJECTION_SECONDS, Outliers

A, B, C, D = (("10.0.0.1:80", ""), ("10.0.0.2:80", ""), ("10.0.0.3:80", ""), ("10.0.0.4:80", ""))


def fail(outliers: Outliers, key: tuple[str, str], *fellows: tuple[str, str], at: float) -> float:
    """As often in a row as it takes; how long it is ejected then."""
    results = [
        outliers.failed(key, fellows, at + number / 100) for number in range(CONSECUTIVE_FAILURES)
    ]
    assert results[:-1] == [0.0] * (CONSECUTIVE_FAILURES - 1)
    return results[-1]


def test_endpoint_is_ejected_after_failures_in_a_row() -> None:
    outliers = Outliers()
    assert fail(outliers, A, A, B, at=0) == 30
    assert outliers.ejected(A, 29)
    assert not outliers.ejected(B, 29)
    assert not outliers.ejected(A, 31)
    assert (outliers.count(29), outliers.count(31)) == (1, 0)


def test_success_in_between_begins_anew() -> None:
    outliers = Outliers()
    for number in range(CONSECUTIVE_FAILURES - 1):
        outliers.failed(A, (A, B), number)
    outliers.succeeded(A, 10)
    assert outliers.records == {}
    assert outliers.failed(A, (A, B), 11) == 0


def test_each_ejection_is_longer_up_to_an_end() -> None:
    outliers, at, seconds = Outliers(), 0.0, []
    for _ in range(12):
        seconds.append(fail(outliers, A, A, B, at=at))
        at += seconds[-1] + 1
    assert seconds[:3] == [30, 60, 90]
    assert seconds[-1] == MAX_EJECTION_SECONDS


def test_former_ejections_are_forgotten_after_a_good_while() -> None:
    outliers = Outliers()
    fail(outliers, A, A, B, at=0)
    outliers.succeeded(A, 40)
    assert fail(outliers, A, A, B, at=50) == 60
    outliers.succeeded(A, 120)
    outliers.succeeded(A, 111 + MAX_EJECTION_SECONDS)
    assert outliers.records == {}


def test_never_more_than_half_and_never_the_last() -> None:
    outliers = Outliers()
    assert fail(outliers, A, A, at=0) == 0
    assert fail(outliers, A, A, A, at=10) == 0  # one endpoint listed twice is one
    outliers = Outliers()
    assert fail(outliers, A, A, B, C, D, at=0) == 30
    assert fail(outliers, B, A, B, C, D, at=1) == 30
    assert fail(outliers, C, A, B, C, D, at=2) == 0
    assert outliers.failed(C, (A, B, C, D), 40) == 30  # the others are back


def test_failures_of_one_instant_are_one() -> None:
    """A hundred connections that waited for one refused handshake say it once."""
    outliers = Outliers()
    for _ in range(100):
        assert outliers.failed(A, (A, B), 1.0) == 0
    assert not outliers.ejected(A, 1.0)


def test_memory_is_bounded() -> None:
    outliers = Outliers()
    for number in range(25_000):
        outliers.failed((str(number), ""), (), float(number))
    assert len(outliers.records) <= 10_000
