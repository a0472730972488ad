"""One probe of a workload, from the node's own namespace (the kubelet's place).

TCP connections are source-translated by the rules of :mod:`metalmesh.render.probes`, so that they
pass redirection and need no identity. Commands run in the workload's namespace as a user of their
own that systemd makes for the moment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import MARK_FROM_PROXY
from metalmesh.model.resources.probe import Exec, HttpGet, TcpSocket
from metalmesh.net.netns import NETNS_DIR
from metalmesh.net.sockets import SO_MARK

if TYPE_CHECKING:
    from metalmesh.model.resources.probe import Probe
    from metalmesh.node.workload_spec import LocalWorkload

_MAX_HEAD_BYTES: Final = 64 * 1024
_SHOWN_BYTES: Final = 200


async def run_probe(probe: Probe, workload: LocalWorkload) -> str:
    """Do it once; "" is success, anything else says why it failed."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            match probe.action:
                case HttpGet():
                    return await _http(probe.action, str(workload.addresses[0]))
                case TcpSocket(port=port, host=host):
                    _, writer = await _connect(host or str(workload.addresses[0]), port)
                    writer.close()
                    return ""
                case Exec(command=command):
                    return await _exec(command, workload, probe.timeout_seconds)
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except (OSError, EOFError, ValueError) as error:
        return str(error) or type(error).__name__


async def _http(action: HttpGet, address: str) -> str:
    host = action.host or address
    context = _lenient() if action.scheme == "HTTPS" else None
    reader, writer = await _connect(
        host, action.port, ssl=context, server_hostname=host if context else None,
        limit=_MAX_HEAD_BYTES,
    )  # fmt: skip
    try:
        shown = f"[{host}]" if ":" in host else host
        headers = {"Host": f"{shown}:{action.port}", "User-Agent": "metalmesh-probe"}
        headers.update(action.headers)
        lines = [f"GET {action.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        status_line = await reader.readline()
    finally:
        writer.close()
    words = status_line.decode("latin-1").split()
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        return f"no HTTP answer: {status_line[:_SHOWN_BYTES]!r}"
    return "" if 200 <= int(words[1]) < 400 else f"status {words[1]}"


async def _connect(
    host: str, port: int, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with the proxy's mark: where the machine itself is captured, probes are not."""
    loop = asyncio.get_running_loop()
    family, kind, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    sock = socket.socket(family, kind)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        await loop.sock_connect(sock, address)
        return await asyncio.open_connection(sock=sock, **options)
    except BaseException:
        sock.close()
        raise


def _lenient() -> ssl.SSLContext:
    """As the kubelet: the certificate is not looked at."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _exec(command: tuple[str, ...], workload: LocalWorkload, seconds: int) -> str:
    """systemd runs it: this process may not become another user."""
    inside = f"NetworkNamespacePath={NETNS_DIR / workload.netns}"
    process = await asyncio.create_subprocess_exec(
        *("systemd-run", "--quiet", "--wait", "--collect", "--pipe", "--service-type=exec"),
        *(() if workload.is_host else ("-p", inside)),
        *("-p", "DynamicUser=yes"),
        *("-p", f"RuntimeMaxSec={seconds}s", "--", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        said = await process.stderr.read(_SHOWN_BYTES)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "" if status == 0 else f"exit {status}: {said.decode(errors='replace').strip()}"
