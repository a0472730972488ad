"""Setup: what uv is told of the machine's pip configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.bootstrap import present_links, uv_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_pip_configuration_becomes_uv_environment() -> None:
    """uv does not read pip's files; a machine behind a mirror must keep using it."""
    settings = uv_settings(
        "global.index-url='https://mirror.example/simple'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\n"
        "global.cert='/etc/ssl/corporate.pem'\n"
        "install.find-links='/srv/a /srv/b'\n"
        "global.trusted-host='mirror.example'\n"
        "global.quiet='1'\n"
    )
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_INDEX"] == "https://a.example/simple https://b.example/simple"
    assert settings["SSL_CERT_FILE"] == "/etc/ssl/corporate.pem"
    assert settings["UV_FIND_LINKS"] == "/srv/a,/srv/b"
    assert settings["UV_INSECURE_HOST"] == "mirror.example"


def test_environment_overrides_files_of_pip() -> None:
    """As in pip, whatever the order of the listing."""
    file, environment = "global.index-url='https://file/'\n", ":env:.index-url='https://env/'\n"
    assert uv_settings(file + environment)["UV_DEFAULT_INDEX"] == "https://env/"
    assert uv_settings(environment + file)["UV_DEFAULT_INDEX"] == "https://env/"


def test_machine_without_configuration_gets_none() -> None:
    """No index is named that the machine does not name itself."""
    assert set(uv_settings("")) == {"UV_LINK_MODE", "UV_SYSTEM_CERTS"}


def test_missing_directory_of_packages_is_passed_over(tmp_path: Path) -> None:
    """pip ignores it silently, uv would not install anything."""
    missing = tmp_path / "missing"
    assert present_links(f"{tmp_path},{missing},https://a.example/w") == (
        f"{tmp_path},https://a.example/w"
    )
    assert present_links(str(missing)) == ""
