"""Subscribe to topics of a hub, and print what is published on them.

What it teaches: a client that stays. It looks for the hub until it is there, and again when it has gone; what has to be
said anew each time is in ``hub_client.py``. What others say is never printed as it comes: a terminal obeys control
characters, so they are replaced.

    python sub.py news weather        and elsewhere        python pub.py news hello
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys

from hub_client import HubClient
from pymuduo import EventLoop


def printable(message: bytes) -> str:
    """Return what is safe to print: no control characters, no bytes that are not UTF-8."""
    text = message.decode("utf-8", "replace").expandtabs()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_message(topic: bytes, content: bytes) -> None:
    """Print a message."""
    print(f"{printable(topic)}: {printable(content)}", flush=True)


def log_connection(client: HubClient) -> None:
    """Tell whether the hub is there."""
    logging.info("the hub is %s", "there" if client.connected else "gone: looking for it")


def main() -> None:
    """Print until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="subscriber: prints what is published on topics of a hub")
    parser.add_argument("--host", default="127.0.0.1", help="where the hub is; default %(default)s")
    parser.add_argument("--port", type=int, default=2022, help="default %(default)s")
    parser.add_argument("topics", nargs="+", metavar="topic")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what this terminal has no character for
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            client = HubClient(loop, (options.host, options.port), "sub")
            client.connection_callback = log_connection
            for topic in options.topics:
                client.subscribe(os.fsencode(topic), print_message)
        except ValueError as e:
            parser.error(str(e))
        client.start()
        loop.run()


if __name__ == "__main__":
    main()
