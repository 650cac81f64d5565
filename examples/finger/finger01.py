"""Finger, step 1 of 7: a loop that does nothing.

What it teaches: a loop with nothing to wait for sleeps, and takes no processor time, until a signal wakes it.
(Finger, RFC 1288, is a question of one line, a user's name, and an answer; Twisted's tutorial built a server for it
in small steps, as muduo does and we do.)

    python finger01.py        and elsewhere        Ctrl-C
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop


def main() -> None:
    """Wait until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 1 of 7: a loop that does nothing")
    parser.add_argument("--port", type=int, default=1079, help="not listened on before the next step")
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        loop.run()


if __name__ == "__main__":
    main()
