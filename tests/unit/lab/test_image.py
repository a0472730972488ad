"""Where images are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.driver import image
from lab.driver.errors import ImageError


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default is a system directory; a developer may keep images elsewhere."""
    monkeypatch.delenv("LAB_CACHE_DIR", raising=False)
    assert image.cache_dir() == Path("/var/cache/metalmesh-lab")
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path))
    assert image.cache_dir() == tmp_path
    assert image.path_of("bookworm").parent == tmp_path
    assert image.path_of("bookworm").name.startswith("bookworm-")


@pytest.mark.parametrize("path", ["/a,b", "/a:b", "/a\\b"])
def test_cache_path_that_breaks_an_overlay_is_refused(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Layers are given to the kernel in one string with these separators."""
    monkeypatch.setenv("LAB_CACHE_DIR", path)
    with pytest.raises(ImageError, match="LAB_CACHE_DIR"):
        image.cache_dir()
