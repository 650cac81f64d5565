"""What every server takes from its command line, and says when it is ready."""

from __future__ import annotations

import argparse
import os
import resource
import ssl
from collections.abc import Collection

from suite.build import certificate

BACKLOG = 4096
READ_BYTES = 65536  # where the peer asks how much to read at once


def parser(description: str | None, modes: Collection[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that all servers have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--port", type=int, default=0, help="0 lets the kernel choose (%(default)s)")
    made.add_argument("--cpu", type=int, metavar="N", help="run on processor N only")
    made.add_argument("--tls", action="store_true", help="in TLS, with the certificate that the suite has made")
    made.add_argument("--mode", choices=sorted(modes), default="echo", help="the service (%(default)s)")
    return made


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and prepare the process: its processor, and as many descriptors as are allowed."""
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return options


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """Return what the command line asks for: the same for every server, and nothing changed but the certificate."""
    if not options.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    return context


def announce(port: int) -> None:
    """Say that the server is ready."""
    print(f"listening on 127.0.0.1:{port}", flush=True)
