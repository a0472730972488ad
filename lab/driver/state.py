"""What a lab remembers between two commands, and the locks that keep commands apart.

/var/lib/metalmesh-lab/<lab>/number          third octet of the underlay
                             inventory.json  the description it was made from
                             id_ed25519      the key that opens every node, known_hosts
                             nodes/<node>/   overlay, console.log
/run/metalmesh-lab/<lab>.lock                held while a command changes the lab
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.driver import machine, names, preflight
from lab.driver.errors import InventoryError, LabError
from lab.driver.plan import Plan, parse_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.driver.host import Progress

DEFAULT_LAB = "default"
DEFAULT_INVENTORY = Path(__file__).resolve().parents[2] / "inventory" / "lab"


def directory(lab: str) -> Path:
    """Where the lab keeps its state."""
    return names.STATE_ROOT / lab


def known_labs() -> list[str]:
    """Labs that have state."""
    if not names.STATE_ROOT.is_dir():
        return []
    return sorted(path.name for path in names.STATE_ROOT.iterdir() if path.is_dir())


def read_inventory(path: Path) -> dict[str, Any]:
    """Read a description: a YAML file, or a directory with hosts.yml."""
    file = path / "hosts.yml" if path.is_dir() else path
    try:
        data = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise InventoryError(f"inventory {file} does not exist; give --inventory PATH") from error
    except yaml.YAMLError as error:
        raise InventoryError(f"inventory {file} is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise InventoryError(f"inventory {file}: must be a mapping of groups, not {data!r}")
    return data


def load_plan(lab: str) -> Plan | None:
    """The plan of a lab that was begun; None when there is no such lab."""
    try:
        number = int((directory(lab) / "number").read_text())
        inventory = json.loads((directory(lab) / "inventory.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return parse_plan(inventory, lab=lab, number=number)


def save_plan(lab: str, inventory: dict[str, Any]) -> Plan:
    """Remember the description of a lab, giving it a number when it has none."""
    with _exclusive(names.RUN_ROOT / ".numbers.lock"):
        number = _number(lab)
        plan = parse_plan(inventory, lab=lab, number=number)
        directory(lab).mkdir(parents=True, exist_ok=True)
        _write(directory(lab) / "number", f"{number}\n")
        _write(directory(lab) / "inventory.json", json.dumps(inventory, indent=1) + "\n")
    return plan


def _number(lab: str) -> int:
    recorded = directory(lab) / "number"
    if recorded.exists():
        number = int(recorded.read_text())
    elif lab == DEFAULT_LAB:
        number = 0
    else:
        return preflight.free_number({_recorded_number(other) for other in known_labs()})
    preflight.check_addresses(lab, number)
    return number


def _recorded_number(lab: str) -> int:
    try:
        return int((directory(lab) / "number").read_text())
    except (FileNotFoundError, ValueError):
        return -1


def ensure_key(lab: str) -> str:
    """Make the key that opens the lab's nodes, if there is none; return its public half."""
    private, public = directory(lab) / "id_ed25519", directory(lab) / "id_ed25519.pub"
    if not public.exists():
        key = Ed25519PrivateKey.generate()
        private.touch(mode=0o600)
        private.write_bytes(machine.private_key_text(key))
        _write(public, machine.public_key_text(key) + "\n")
    return public.read_text().strip()


def write_known_hosts(plan: Plan) -> None:
    """List the host keys of all nodes, by address and by name."""
    lines = []
    for node in plan.nodes:
        key = machine.files_of(node).host_key
        if key.exists():
            lines.append(f"{node.address_v4},{node.address_v6},{node.name} {key.read_text()}\n")
    _write(directory(plan.name) / "known_hosts", "".join(lines))


def write_ansible_variables(plan: Plan) -> None:
    """Tell Ansible and testinfra how to reach the nodes.

    The values are literal because testinfra does not evaluate templates in an inventory.
    """
    own = directory(plan.name)
    options = {
        "UserKnownHostsFile": f"{own}/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    common = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": f"{own}/id_ed25519",
        "ansible_ssh_common_args": " ".join(f"-o {key}={value}" for key, value in options.items()),
        "lab_name": plan.name,
        "lab_state_dir": str(own),
    }
    hosts = {
        node.name: {
            **common,
            "ansible_host": node.address_v4,
            "lab_address_v4": node.address_v4,
            "lab_address_v6": node.address_v6,
        }
        for node in plan.nodes
    }
    inventory = {"all": {"hosts": list(hosts)}, "_meta": {"hostvars": hosts}}
    _write(own / "ansible.json", json.dumps(inventory, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.rename(path)


@contextlib.contextmanager
def lock(lab: str, progress: Progress) -> Iterator[None]:
    """Hold the lab against other commands that would change it."""
    with _exclusive(names.RUN_ROOT / f"{lab}.lock", progress):
        yield


@contextlib.contextmanager
def _exclusive(path: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold a lock file. Its last holder removes it, so a lock must prove to be the current one."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the directory was removed between the two calls
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    progress("waiting for another command on this lab to end")
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):
            names.RUN_ROOT.rmdir()  # succeeds only for the last lab


def require_plan(lab: str) -> Plan:
    """The plan of a lab that was begun, or an error."""
    plan = load_plan(lab)
    if plan is None:
        known = ", ".join(known_labs()) or "none"
        raise LabError(f"there is no lab {lab!r} (there is: {known}); make it with `lab/lab up`")
    return plan
