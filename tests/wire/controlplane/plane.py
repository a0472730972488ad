"""The real control plane as a process on loopback, and raw clients of its services."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from metalmesh.controlplane.discovery_service import ADS_METHOD, ADS_SERVICE
from metalmesh.pki.keys import make_key
from metalmesh.proto import ca_pb2, node_pb2
from metalmesh.proto import discovery_pb2 as pb
from tests.support.waits import Wait, wait_until

START = Wait(20.0, "Python and gRPC start in a second, on a loaded machine in several")
CHANGE = Wait(5.0, "a change is served in milliseconds; the bound of 1 s is asserted by its test")
RPC_SECONDS = 10.0

CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
JOIN = "/metalmesh.node.v1.NodeService/Join"
RENEW = "/metalmesh.node.v1.NodeService/Renew"


def run(*arguments: str) -> str:
    """Run the command ``metalmesh``."""
    command = [sys.executable, "-m", "metalmesh.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Plane:
    """A control plane below a directory; ``start`` and ``stop`` as often as needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.log_path = directory / "log"
        self.settings: dict[str, Any] = {
            "component": "controlplane",
            "listen_address": "127.0.0.1",
            "port": 0,
            "metrics_port": 0,
            "store_dir": str(self.store),
            "ca_dir": str(directory / "ca"),
            "tokens_dir": str(directory / "tokens"),
            "state_dir": str(directory / "state"),
            "server_names": ["localhost", "127.0.0.1"],
            "log_format": "json",
        }
        for name in ("store", "tokens", "state"):
            (directory / name).mkdir()
        run("ca", "init", "--dir", str(directory / "ca"))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.metrics_port = 0

    # --- life --------------------------------------------------------------------------------

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process, not waiting for it."""
        config = self.directory / "controlplane.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        command = [sys.executable, "-m", "metalmesh.cli.main", "controlplane", "run"]
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*command, "--config", str(config)], stderr=log, env=environment
            )

    def start(self) -> Self:
        """Start and wait until it serves."""
        seen = len(self.log())
        self.process = self.spawn()

        def serving() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log_path.read_text()
            lines = [line for line in self.log()[seen:] if line["message"] == "serving"]
            return lines[0] if lines else None

        line = wait_until(serving, START, what="control plane serves")
        self.port, self.metrics_port = line["port"], line["metrics_port"]
        # a restart keeps its port, as in production
        self.settings |= {"port": self.port, "metrics_port": self.metrics_port}
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; return the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(timeout=START.seconds)
        self.process = None
        return status

    # --- what it says ------------------------------------------------------------------------

    def log(self) -> list[dict[str, Any]]:
        """Complete log lines so far."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, message: str, **fields: str) -> list[dict[str, Any]]:
        """Log lines with this message whose fields contain these texts."""
        return [
            line
            for line in self.log()
            if line["message"] == message
            and all(text in str(line.get(name)) for name, text in fields.items())
        ]

    def get(self, path: str) -> str:
        """GET from the debug port."""
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        with urllib.request.urlopen(url, timeout=RPC_SECONDS) as response:
            return response.read().decode()

    def metric(self, sample: str) -> float:
        """The value of one sample, 0 when there is none."""
        for line in self.get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    # --- what is done to it ------------------------------------------------------------------

    def put(self, name: str, text: str) -> None:
        """Write a file of the store by rename, as the product's tools do."""
        temporary = self.store / f".{name}.new"
        temporary.write_text(text)
        temporary.rename(self.store / name)

    def join_token(self, node: str) -> str:
        """Mint a join token."""
        where = str(self.directory / "tokens")
        return run("token", "create", "--node", node, "--tokens-dir", where).strip()

    def client(self, node: str = "") -> Client:
        """A client; of a node that has joined when one is named."""
        client = Client(self)
        if node:
            client.token = client.join(self.join_token(node), node).node_token
        return client


def signing_request(*names: x509.GeneralName) -> str:
    """A CSR of a new key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    request = builder.sign(make_key(), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


class Client:
    """Calls over TLS with the mesh's root; ``token`` is the node token, if any."""

    def __init__(self, plane: Plane, roots: bytes | None = None) -> None:
        roots = roots or (plane.directory / "ca" / "root-cert.pem").read_bytes()
        self.channel = grpc.secure_channel(
            f"localhost:{plane.port}", grpc.ssl_channel_credentials(roots)
        )
        self.token = ""

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        call = self.channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=RPC_SECONDS, metadata=self.metadata)

    def join(self, token: str, node: str) -> Any:
        """Redeem a join token."""
        request = node_pb2.JoinRequest(join_token=token, node_name=node)
        return self._call(JOIN, request, node_pb2.NodeCredential)

    def renew(self) -> Any:
        """Exchange the node token."""
        return self._call(RENEW, node_pb2.RenewRequest(), node_pb2.NodeCredential)

    def certificate(self, identity: str, csr: str = "", ttl_seconds: int = 3600) -> list[str]:
        """Ask for a certificate; the chain as sent."""
        request = ca_pb2.IstioCertificateRequest(
            csr=csr or signing_request(), validity_duration=ttl_seconds
        )
        if identity:
            request.metadata["ImpersonatedIdentity"] = identity
        return list(self._call(CREATE, request, ca_pb2.IstioCertificateResponse).cert_chain)

    def stream(self) -> Stream:
        """Open a delta ADS stream."""
        return Stream(self)


class Stream:
    """A raw delta ADS stream: what is put in is sent, responses are taken one by one."""

    def __init__(self, client: Client) -> None:
        self._requests: queue.Queue[pb.DeltaDiscoveryRequest | None] = queue.Queue()
        self._responses: queue.Queue[pb.DeltaDiscoveryResponse | grpc.RpcError] = queue.Queue()
        self._call = client.channel.stream_stream(
            f"/{ADS_SERVICE}/{ADS_METHOD}",
            request_serializer=pb.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=pb.DeltaDiscoveryResponse.FromString,
        )(self._outgoing(), metadata=client.metadata)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _outgoing(self) -> Iterator[pb.DeltaDiscoveryRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
        except grpc.RpcError as error:
            self._responses.put(error)

    def ask(self, type_url: str, **fields: Any) -> None:
        """Send a request."""
        versions = fields.pop("versions", {})
        error = fields.pop("error", "")
        request = pb.DeltaDiscoveryRequest(
            type_url=type_url, node=pb.Node(id="ztunnel~1.1.1.1~z.ns~d"), **fields
        )
        request.initial_resource_versions.update(versions)
        if error:
            request.error_detail.message = error
        self._requests.put(request)

    def next(self, seconds: float = RPC_SECONDS) -> pb.DeltaDiscoveryResponse:
        """The next response, not answered; raises what ended the stream."""
        found = self._responses.get(timeout=seconds)
        if isinstance(found, grpc.RpcError):
            raise found
        return found

    def take(self) -> pb.DeltaDiscoveryResponse:
        """The next response, acknowledged."""
        response = self.next()
        self.ask(response.type_url, response_nonce=response.nonce)
        return response

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        self._requests.put(None)
        self._reader.join(RPC_SECONDS)
