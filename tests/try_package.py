"""Installs each distribution of a folder into a clean environment and serves a connection with it.

    python tests/try_package.py dist

A check of packaging, run by ``make package``: the sdist must build and the wheel must be complete, typed and compiled.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TRIAL = """
import importlib.resources, socket, threading
import pymuduo
assert pymuduo.COMPILED, "not compiled"
assert importlib.resources.files("pymuduo").joinpath("py.typed").is_file(), "not typed"
with pymuduo.EventLoop() as loop:
    server = pymuduo.TcpServer(loop, pymuduo.InetAddress.loopback(0), "trial")
    server.thread_num = 1
    server.message_callback = lambda connection, buffer, when: connection.send(buffer)
    server.start()
    replies = []
    def client():
        with socket.create_connection(("127.0.0.1", server.address.port), timeout=10) as sock:
            sock.sendall(b"hello")
            replies.append(sock.recv(5))
        loop.quit()
    thread = threading.Thread(target=client)
    thread.start()
    loop.run()
    thread.join()
assert replies == [b"hello"], replies
print("served with", pymuduo.__version__, "from", pymuduo.__file__)
"""


def try_distribution(path: Path) -> None:
    """Install *path* into a new environment, away from the sources, and run the trial there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(path.resolve())]
        subprocess.run(install, check=True, cwd=folder)
        subprocess.run([python, "-c", TRIAL], check=True, cwd=folder, timeout=60)
    print(f"{path.name}: installed and tried")


def main() -> None:
    """Try everything in the folder that the command line names."""
    distributions = sorted(Path(sys.argv[1]).iterdir())
    kinds = {"".join(p.suffixes[-2:]) if p.name.endswith(".tar.gz") else p.suffix for p in distributions}
    if kinds != {".tar.gz", ".whl"}:
        sys.exit(f"expected an sdist and a wheel, found {[p.name for p in distributions]}")
    for path in distributions:
        try_distribution(path)


if __name__ == "__main__":
    main()
