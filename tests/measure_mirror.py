"""Thirty curls at once from `make mirror`, against nginx in the same run, taking turns: python -m tests.measure_mirror.

It needs nginx (Debian: apt install nginx-light). Also: with one client stalled and one killed, the mirror's memory, and
a small GET beside 60 clients that take nothing and 60 half-sent requests.
"""

from __future__ import annotations

import http.client
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.bundle_kit import bundle_kit
from tests.hub import big_file
from tests.hub.raw import dial
from tests.test_mirror import start

SIZE = 269_060_552  # bytes: the starter's weights
CLIENTS = 30
TURNS = 5

NGINX = """
daemon off; pid {place}/pid; error_log {place}/error.log; worker_processes auto;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {place}/1; proxy_temp_path {place}/2; fastcgi_temp_path {place}/3;
  uwsgi_temp_path {place}/4; scgi_temp_path {place}/5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def seconds(address: str, clients: int = CLIENTS) -> float:
    """From the first curl's start to the last one's end."""
    command = ["curl", "-sS", "--noproxy", "*", "--fail", "--output", "/dev/null", "-w", "%{size_download}", address]
    started = time.perf_counter()
    curls = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    sizes = [curl.communicate()[0] for curl in curls]
    took = time.perf_counter() - started
    assert sizes == [str(SIZE)] * clients, sizes
    return took


def bad_client(address: str) -> socket.socket:
    """Asks for the file and takes nothing of it."""
    parts = urlsplit(address)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    return connection


def small_gets(address: str) -> list[float]:
    """Seconds of each, on one connection."""
    connection, took = http.client.HTTPConnection(urlsplit(address).netloc), []
    for _ in range(100):
        started = time.perf_counter()
        connection.request("GET", "/README")
        connection.getresponse().read()
        took.append(time.perf_counter() - started)
    return took


def nginx(place: Path, root: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place.mkdir()
    place.chmod(0o755)
    (place / "nginx.conf").write_text(NGINX.format(place=place, port=port, root=root))
    command = ["nginx", "-c", str(place / "nginx.conf"), "-g", "user root;"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(1)
    assert process.poll() is None, (place / "error.log").read_text()
    return process, f"http://127.0.0.1:{port}"


def peak(pid: int) -> float:
    """MB of resident memory at most, so far."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = bundle_kit(Path(folder) / "room")
        big_file(room.folder / "kit" / "large.bin", SIZE)
        room.seal()
        mirror = start(room)
        other, theirs = nginx(Path(folder) / "nginx", room.folder)
        took: dict[str, list[float]] = {"nginx": [], "mirror": [], "mirror, one stalled, one killed": []}
        try:
            for _ in range(TURNS):
                took["nginx"].append(seconds(f"{theirs}/kit/large.bin"))
                took["mirror"].append(seconds(f"{mirror.url}/kit/large.bin"))
                stalled, killed = (bad_client(f"{mirror.url}/kit/large.bin") for _ in range(2))
                killed.close()
                took["mirror, one stalled, one killed"].append(seconds(f"{mirror.url}/kit/large.bin"))
                stalled.close()
            memory = peak(mirror.process.pid)
            bad = [bad_client(f"{mirror.url}/kit/large.bin") for _ in range(60)]
            bad += [dial(mirror.url, "GET / HTTP/1.1\r\nHost: ") for _ in range(60)]
            small = sorted(small_gets(mirror.url))
            crowded = peak(mirror.process.pid)
            for connection in bad:
                connection.close()
        finally:
            other.terminate()
            other.wait()
            mirror.stop()
    for name, each in took.items():
        rate = CLIENTS * SIZE / statistics.median(each) / 1e9
        print(f"{name:32} {statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f}), {rate:.2f} GB/s")
    ratios = [theirs / ours for theirs, ours in zip(took["nginx"], took["mirror"], strict=True)]
    print(f"rate of the mirror over nginx: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"the mirror's memory at its peak: {memory:.0f} MB; with 120 bad clients: {crowded:.0f} MB")
    print(f"a small GET beside them: {statistics.median(small) * 1000:.1f} ms, at most {small[-1] * 1000:.1f}")


if __name__ == "__main__":
    sys.exit(main())
