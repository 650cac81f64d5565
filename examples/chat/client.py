"""A chat client for the terminal: each line you type is said to all, and what they say is printed.

What it teaches: a loop for the network and a thread for what can only wait. The terminal, a pipe and a file differ in
whether they can be watched by a loop, but a thread can read all three; ``connection.send`` takes its lines from there.

What others say is never printed as it comes: a terminal obeys control characters, and an escape sequence in a message
could rewrite the screen, or type for you. They are replaced, and so are line ends, which could fake another's words.

    python client.py --name ann        then type; /name NAME, /who and /quit, or the end of the input, to leave
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import threading

from codec import MAX_MESSAGE_BYTES, ChatCodec, encode
from pymuduo import EventLoop, TcpClient, TcpConnection, Timestamp

_PATIENCE_S = 10.0


def printable(message: bytes) -> str:
    """Return what is safe to print: no control characters, no bytes that are not UTF-8."""
    text = message.decode("utf-8", "replace").expandtabs()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_message(connection: TcpConnection, message: bytes, receive_time: Timestamp) -> None:
    """Print what was said."""
    print(printable(message), flush=True)


def send_lines(connection: TcpConnection) -> None:
    """Send what is typed, line by line, and leave when it ends; in a thread of its own."""
    # Unbuffered: a thread that waits inside sys.stdin holds a lock that the interpreter wants when it exits.
    with io.FileIO(0, closefd=False) as lines:
        try:
            for line in lines:
                text = line.strip()
                if len(text) > MAX_MESSAGE_BYTES:
                    logging.error("too long, not sent: %d bytes", len(text))
                elif text:
                    connection.send(encode(text))
        except OSError as e:  # the terminal is gone
            logging.info("the input ended: %s", e)
    connection.send(encode(b"/quit"))  # the server answers all that came before, and hangs up
    connection.force_close_with_delay(_PATIENCE_S)


def main() -> None:
    """Chat until the input ends, the server leaves, Ctrl-C or SIGTERM; the exit code is 1 if there is no server."""
    parser = argparse.ArgumentParser(description="chat client: each line you type is said to all")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=3399, help="default %(default)s")
    parser.add_argument("--name", help="what the others call you; without it the server chooses")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what this terminal has no character for
    error: Exception | None = None

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            loop.quit()
            return
        if options.name:
            connection.send(encode(f"/name {options.name}".encode()))
        threading.Thread(target=send_lines, args=(connection,), daemon=True).start()

    def on_connect_failed(client: TcpClient, reason: Exception) -> None:
        nonlocal error
        error = reason
        loop.quit()

    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            client = TcpClient(loop, (options.host, options.port), "chat", connect_timeout_s=_PATIENCE_S)
        except ValueError as e:
            parser.error(str(e))
        client.connection_callback = on_connection
        client.message_callback = ChatCodec(print_message).on_message
        client.connect_failed_callback = on_connect_failed
        client.connect()
        loop.run()
    if error is not None:
        sys.exit(f"can't connect to {options.host} port {options.port}: {error}")


if __name__ == "__main__":
    main()
