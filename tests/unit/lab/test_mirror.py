"""Which Debian mirror a machine's apt sources name."""

from __future__ import annotations

import pytest

from lab.driver.mirror import find_mirror

DEB822 = """\
Types: deb
# comment in the middle
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("sources", "mirror"),
    [
        ([DEB822], "http://mirror.example/debian"),
        (["deb http://one.example/debian trixie main contrib\n"], "http://one.example/debian"),
        (
            ["deb [arch=amd64 signed-by=/k.gpg] https://two.example/debian/ bookworm main\n"],
            "https://two.example/debian",
        ),
        (["# deb http://off.example/debian trixie main\n"], None),
        (["deb-src http://src.example/debian trixie main\n"], None),
        (["deb http://sec.example/debian-security trixie-security main\n"], None),
        (["deb https://other.example/apt nodistro main\n"], None),
        ([DEB822.replace("Types: deb\n", "Enabled: no\nTypes: deb\n")], None),
        (["deb mirror+file:/etc/apt/mirrors trixie main\n"], None),
        ([], None),
        (["", DEB822], "http://mirror.example/debian"),
        (
            ["Types: deb\nURIs: http://a.example/x\n  http://b.example/y\nSuites: trixie\n"
             "Components: contrib\n  main\n"],
            "http://a.example/x",
        ),
    ],
)  # fmt: skip
def test_mirror_is_the_first_enabled_debian_main_archive(
    sources: list[str], mirror: str | None
) -> None:
    """Security archives, source packages, other vendors and exotic schemes do not qualify."""
    assert find_mirror(sources) == mirror
