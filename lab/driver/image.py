"""Builds node images and keeps them in a cache, one directory per recipe.

An image is a root directory that machines use as the lower layer of an overlay. It is built
aside and renamed into place, so a directory in the cache is always complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab.driver import host, names, recipe
from lab.driver.errors import ImageError
from lab.driver.mirror import debian_mirror, machine_apt_options
from lab.driver.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.driver.host import Progress

DEFAULT_CACHE = Path("/var/cache/metalmesh-lab")


def cache_dir() -> Path:
    """Where images are kept; LAB_CACHE_DIR moves it."""
    found = Path(os.environ.get("LAB_CACHE_DIR") or DEFAULT_CACHE).absolute()
    if set(",:\\") & set(str(found)):
        raise ImageError(
            f"LAB_CACHE_DIR is {str(found)!r}: a comma, colon or backslash separates the options"
            " of an overlay; choose a path without them"
        )
    return found


def path_of(release: str) -> Path:
    """Where the image of a release is, or will be."""
    return cache_dir() / Recipe(release=release, mirror="").name


def ensure(release: str, progress: Progress) -> Path:
    """Return the image of a release, building it when the cache has none."""
    wanted = Recipe(release=release, mirror=debian_mirror())
    target = cache_dir() / wanted.name
    if target.is_dir():
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    with _build_lock(release, progress):
        if not target.is_dir():
            _remove_unused(release, keep=target)
            _build(wanted, target, progress)
    return target


@contextlib.contextmanager
def _build_lock(release: str, progress: Progress) -> Iterator[None]:
    """One build of a release at a time; whoever waited finds the image made."""
    with (cache_dir() / f".{release}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"image {release}: waiting for another build of it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(wanted: Recipe, target: Path, progress: Progress) -> None:
    building = cache_dir() / f".building-{wanted.name}"
    _remove_tree(building)
    progress(f"image {wanted.release}: building from {wanted.mirror} (about half a minute)")
    try:
        _bootstrap(wanted, building, progress)
        _finish(building)
        building.rename(target)
    except BaseException:
        _remove_tree(building)
        raise
    progress(f"image {wanted.release}: ready in {target}")


def _bootstrap(wanted: Recipe, building: Path, progress: Progress) -> None:
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        f"--include={','.join(recipe.PACKAGES)}",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in recipe.EXCLUDED_PATHS),
        *(f"--aptopt={option}" for option in machine_apt_options()),
        wanted.release,
        str(building),
        f"deb {wanted.mirror} {wanted.release} main",
    ]
    last: list[str] = []
    # libmount would leave /run/mount behind on hosts that do not have it
    environment = {**os.environ, "LIBMOUNT_UTAB": f"{building}.utab"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            # Its own steps start with "I: "; the percentages of a bar end in a carriage return.
            text = line.rsplit("\r", 1)[-1].strip()
            if text.startswith("I: "):
                progress(f"image {wanted.release}: {text[3:]}")
            if text:
                last = [*last[-9:], text]
    if process.returncode:
        words = "\n  ".join(last)
        raise ImageError(
            f"image {wanted.release}: mmdebstrap failed with exit {process.returncode}; check that"
            f" {wanted.mirror} can be reached, or set LAB_DEBIAN_MIRROR. Its last words:\n  {words}"
        )


def _finish(root: Path) -> None:
    """What turns a bare Debian into a node; see the recipe for the reasons."""
    # Options of the building machine (proxies, credentials) are not the nodes' business.
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for unit in recipe.MASKED_UNITS:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for path, content in recipe.FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(content)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)


def _remove_unused(release: str, *, keep: Path) -> None:
    """Remove images of older recipes, unless a lab stands on them, running or not."""
    mounted = Path("/proc/self/mountinfo").read_text()
    noted = {note.read_text().strip() for note in names.STATE_ROOT.glob("*/nodes/*/image")}
    for old in cache_dir().glob(f"{release}-*"):
        if old != keep and f"lowerdir={old}," not in mounted and str(old) not in noted:
            _remove_tree(old)


def _remove_tree(path: Path) -> None:
    """Remove a half-built root; a build that was killed may have left mounts inside."""
    host.unmount_below(path)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
