"""``metalmesh ca``."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from metalmesh.cli.main import main
from metalmesh.controlplane.issued import IssuedCertificates


def test_init_says_what_it_wrote_and_nothing_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ca", "init", "--dir", str(tmp_path), "--trust-domain", "td", "-o", "json"]
    assert main([*arguments, "--check"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["changed"]
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": False, "files": []}


def test_show_and_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca", "init", "--dir", str(tmp_path)])
    capsys.readouterr()
    serials = []
    for _ in range(2):
        assert main(["ca", "show", "--dir", str(tmp_path), "-o", "json"]) == 0
        root, issuing = json.loads(capsys.readouterr().out)["certificates"]
        assert issuing["issuer"] == root["subject"]
        serials.append((root["serial"], issuing["serial"]))
        assert main(["ca", "renew", "--dir", str(tmp_path)]) == 0
        capsys.readouterr()
    assert serials[0][0] == serials[1][0]
    assert serials[0][1] != serials[1][1]


def test_error_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca", "show", "--dir", str(tmp_path)]) == 1
    assert "metalmesh ca: " in capsys.readouterr().err


IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


def test_revoking_names_serials_or_an_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list grows, and says nothing new the second time."""
    main(["ca", "init", "--dir", str(tmp_path)])
    issued = IssuedCertificates(tmp_path)
    now = int(time.time())
    issued.add(0xA1, IDENTITY, "node1", now + 60)
    issued.add(0xA2, IDENTITY, "node1", now - 60)
    issued.add(0xA3, IDENTITY + "2", "node1", now + 60)
    capsys.readouterr()
    common = ["--dir", str(tmp_path), "-o", "json"]
    by_identity = ["ca", "revoke", *common, "--state-dir", str(tmp_path), "--identity", IDENTITY]
    for changed in (True, False):
        assert main(by_identity) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["changed"] is changed
        assert [entry["serial"] for entry in result["revoked"]] == ["a1"]
    assert main(["ca", "revoke", *common, "--serial", "0A:B0", "--serial", "b1"]) == 0
    capsys.readouterr()
    assert main(["ca", "revoke", *common, "--serial", "c1", "--issuer", "root"]) == 0
    capsys.readouterr()
    assert main(["ca", "crl", *common]) == 0
    revoked = json.loads(capsys.readouterr().out)["revoked"]
    assert [(entry["serial"], entry["issuer"][:12]) for entry in revoked] == [
        ("a1", "CN=metalmesh"), ("b1", "CN=metalmesh"), ("ab0", "CN=metalmesh"),
        ("c1", "CN=metalmesh"),
    ]  # fmt: skip
    assert stat.S_IMODE((tmp_path / "crl.pem").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "nothing to revoke; give --serial or --identity"),
        (["--identity", IDENTITY], "no valid certificate of spiffe://"),
        (["--serial", "zz"], "serial number 'zz' is not hexadecimal"),
    ],
)
def test_refused_revocation_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    main(["ca", "init", "--dir", str(tmp_path)])
    where = ["--dir", str(tmp_path), "--state-dir", str(tmp_path)]
    assert main(["ca", "revoke", *where, *arguments]) == 1
    assert error in capsys.readouterr().err
    assert not (tmp_path / "crl.pem").exists()
