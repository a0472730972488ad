"""The HTTP application both pairs serve: nginx, so that little of the machine goes to it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.netns import Netns

_CONFIG = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    server {{
        listen {address}:{port} backlog=4096;
        location / {{ return 200 "{body}"; }}
    }}
}}
"""


@contextlib.contextmanager
def http_server(where: Netns, directory: Path, port: int) -> Iterator[None]:
    """Answer every request to this port of the namespace's address with 1 KiB."""
    directory.mkdir()
    path = directory / "nginx.conf"
    path.write_text(
        _CONFIG.format(directory=directory, address=where.address, port=port, body="x" * 1024)
    )
    with (directory / "nginx.log").open("wb") as log:
        process = where.popen("nginx", "-c", str(path), stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
