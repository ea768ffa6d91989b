"""What stands between a client and the Hub in a company: TLS with a CA of its own, and a proxy."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of localhost, signed by itself: its own CA file too."""
    cert, key = folder / "ca.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


class Relay:
    """Listens on loopback and passes each connection on. `passed` lists what the proxy was asked for."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.passed: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError):
            self.pass_on(connection)
        connection.close()

    def pass_on(self, connection: socket.socket) -> None:
        raise NotImplementedError("each relay passes on in its own way")

    @staticmethod
    def join(one: socket.socket, other: socket.socket) -> None:
        """Copies both ways until one side ends."""

        def copy(source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=copy, args=(other, one), daemon=True)
        back.start()
        copy(one, other)
        back.join(10)
        other.close()


class TlsFront(Relay):
    """https in front of a hub."""

    def __init__(self, hub_url: str, cert: Path, key: Path) -> None:
        self._target = urlsplit(hub_url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        super().__init__()
        self.url = f"https://localhost:{self.port}"

    def pass_on(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as client:
            self.join(client, socket.create_connection((str(self._target.hostname), int(self._target.port or 80))))


class ConnectProxy(Relay):
    """A proxy that tunnels (CONNECT), as https goes through one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pass_on(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        method, address, _ = head.decode().split(" ", 2)
        self.passed.append(f"{method} {address}")
        name, port = address.rsplit(":", 1)
        target = socket.create_connection((name, int(port)))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.join(connection, target)
