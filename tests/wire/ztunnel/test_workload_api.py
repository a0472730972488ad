"""The SPIFFE Workload API: to the workload its own identity, and to nobody else anything."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cryptography import x509

from tests.support.netns import Netns
from tests.support.waits import WAITS, Wait, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
CLIENT = Wait(30.0, "a Python process starts and imports gRPC; the machine may be busy")
SPIFFE = "spiffe://cluster.local/ns/shop/sa"


@pytest.fixture
def guests(stage: Stage) -> tuple[Guest, Guest]:
    """Two workloads of a ztunnel that serves the API."""
    return _start(stage)


def _start(stage: Stage) -> tuple[Guest, Guest]:
    stage.settings["workload_api_socket"] = str(_socket(stage))
    (stage.directory / "api").mkdir()
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    return one, two


def _socket(stage: Stage) -> Any:
    return stage.directory / "api" / "socket"


def _command(stage: Stage, action: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.support.spiffe_client", str(_socket(stage)), action)


def _ask(stage: Stage, where: Netns, action: str = "fetch") -> dict[str, Any]:
    answer = where.run(*_command(stage, action), timeout_seconds=CLIENT.seconds)
    return json.loads(answer.splitlines()[-1])


@contextlib.contextmanager
def _watching(stage: Stage, where: Netns) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Asks what a client that stays has been told so far."""
    path = stage.directory / "watched"
    with path.open("wb") as out:
        process = where.popen(*_command(stage, "watch"), stdout=out, stdin=subprocess.DEVNULL)
    try:
        yield lambda: [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    finally:
        process.kill()
        process.wait()


def test_every_workload_gets_its_own_identity(stage: Stage, guests: tuple[Guest, Guest]) -> None:
    """Key, chain and roots, as the PyPI client reads and checks them; an audit line each."""
    root = x509.load_pem_x509_certificate(stage.plane.root_path.read_bytes())
    for guest in guests:
        told = _ask(stage, guest.netns)
        assert told.get("identity") == f"{SPIFFE}/sa{guest.number}", told
        assert told["key_fits"]
        assert told["roots"] == [root.serial_number]
        assert told["domains"] == ["cluster.local"]
        held = {item["identity"]: item["certChain"] for item in stage.dump()["certificates"]}
        assert str(told["serial"]) == held[told["identity"]][0]["serialNumber"]
        stage.wait_log("audit", "workload API call", told["identity"], 'method="FetchX509SVID"')
    name = "metalmesh_ztunnel_workload_api_requests_total"
    assert f'{name}{{method="FetchX509SVID",result="granted"}} 2' in stage.metrics()
    assert "PRIVATE KEY" not in stage.log()


def test_whoever_is_no_workload_is_refused(stage: Stage, guests: tuple[Guest, Guest]) -> None:
    """The machine itself, and a namespace that nobody serves; a served one that was removed."""
    stranger = stage.add_guest()
    for where in (stage.node, stranger.netns):
        assert "no identity issued" in _ask(stage, where)["error"]
    stage.forget(guests[0])
    assert "no identity issued" in _ask(stage, guests[0].netns)["error"]
    assert _ask(stage, guests[1].netns)["identity"] == f"{SPIFFE}/sa2"
    stage.wait_log("audit", "workload API call refused", "no identity issued", "pid=")


def test_other_methods_are_not_implemented(stage: Stage, guests: tuple[Guest, Guest]) -> None:
    assert "X.509 certificates only" in _ask(stage, guests[0].netns, "jwt")["error"]


def test_call_without_the_security_header_is_refused(
    stage: Stage, guests: tuple[Guest, Guest]
) -> None:
    """SPIFFE Workload Endpoint, section 5: InvalidArgument, to workloads, too."""
    code = (
        "import grpc,sys\n"
        "channel = grpc.insecure_channel('unix://' + sys.argv[1])\n"
        "call = channel.unary_stream('/SpiffeWorkloadAPI/FetchX509SVID')\n"
        "try:\n    next(call(b'', timeout=10))\n"
        "except grpc.RpcError as error:\n    print(error.code().name)\n"
    )
    line = (sys.executable, "-c", code, str(_socket(stage)))
    answer = guests[0].netns.run(*line, timeout_seconds=CLIENT.seconds)
    assert answer.strip() == grpc.StatusCode.INVALID_ARGUMENT.name


def test_rotation_is_streamed(stage: Stage) -> None:
    """Every new certificate, as soon as it is there; no more when the workload has gone."""
    stage.plane.ttl = datetime.timedelta(seconds=4)
    one, _ = _start(stage)
    with _watching(stage, one.netns) as watched:
        wait_until(lambda: len(watched()) >= 3, CLIENT, what="three certificates streamed")
        told = watched()
        assert {item["identity"] for item in told} == {f"{SPIFFE}/sa1"}
        assert len({item["serial"] for item in told}) == len(told)
        assert all(item["key_fits"] for item in told)
        stage.forget(one)
        wait_until(
            lambda: "workload API call refused" in stage.log(),
            WAITS["workload"],
            what="the client comes back after the next renewal and is refused",
        )
