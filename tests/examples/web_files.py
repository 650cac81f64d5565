"""A web server that is not ours, so that it finds out what proxies do to its connections, and curl to fetch from it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from conftest import PATIENCE_S, installed


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a folder in threads, over TLS if there is a context."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), functools.partial(QuietHandler, directory=str(folder)))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @contextlib.contextmanager
    def serving(self) -> Iterator[int]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self.server_address[1]
        finally:
            self.shutdown()
            thread.join(PATIENCE_S)
            self.server_close()


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [installed("curl"), "--silent", "--show-error", "--noproxy", "", "--max-time", str(PATIENCE_S)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's, not its
    return subprocess.run(
        [*command, *arguments], env=environment, check=False, capture_output=True, timeout=2 * PATIENCE_S
    )


def fetch(*arguments: str) -> str:
    """Return the digest of what curl brings."""
    result = curl("--fail", *arguments)
    assert result.returncode == 0, result.stderr
    return hashlib.sha256(result.stdout).hexdigest()
