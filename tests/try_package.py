"""Installs the wheel of a folder into a clean environment and serves a connection with it.

    python tests/try_package.py dist

A check of packaging, run by ``make package``: the wheel must be complete, typed and compiled. It was built from the
sdist, not from the sources beside it, so that is complete, too.
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


def try_wheel(path: Path) -> None:
    """Install *path* into a new environment, away from the sources, and run the trial there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(path.resolve())]
        subprocess.run(install, check=True, cwd=folder)
        subprocess.run([python, "-c", TRIAL], check=True, cwd=folder, timeout=60)
    print(f"{path.name}: installed and tried")


def main() -> None:
    """Try the wheel of the folder that the command line names."""
    folder = Path(sys.argv[1])
    sdists, wheels = list(folder.glob("*.tar.gz")), list(folder.glob("*.whl"))
    if len(sdists) != 1 or len(wheels) != 1:
        sys.exit(f"expected an sdist and a wheel, found {[path.name for path in folder.iterdir()]}")
    try_wheel(wheels[0])


if __name__ == "__main__":
    main()
