"""Query client: asks over protobuf and prints the answer. Talks to muduo's query server, too.

What it teaches: what a client owes its user: it ends, whatever the server does. It ends when the answer is there, when
the connection can't be made or is lost, when a message breaks the rules, and when nothing comes for a while; it says
which it was, and the exit code tells whether there was an answer. And nothing is printed as it came: a terminal obeys
control characters.

    python client.py --port 2011 "Running?" "What time is it?"        or nothing but a message:        client.py --empty
"""

from __future__ import annotations

import argparse
import logging
import sys

from google.protobuf.message import Message

from pymuduo import EventLoop, TcpClient, TcpConnection, Timestamp
from pymuduo.codec.protobuf import ProtobufCodec, ProtobufDispatcher
from query_messages import Answer, Empty, Query, text_of

_MAX_FRAME_BYTES = 1 << 20
_PATIENCE_S = 10.0


class QueryClient:
    """Sends one message when it is connected, and prints what comes until the server hangs up."""

    def __init__(self, loop: EventLoop, host: str, port: int, message: Message) -> None:
        self._loop = loop
        self._message = message
        self.failure: str | None = None
        self.is_answered = False
        dispatcher = ProtobufDispatcher(self.on_unknown_message)
        dispatcher.register(Answer, self.on_answer)
        self._codec = ProtobufCodec(dispatcher.on_message, max_bytes=_MAX_FRAME_BYTES)
        self._client = TcpClient(loop, (host, port), "query")
        self._client.connection_callback = self.on_connection
        self._client.connect_failed_callback = self.on_connect_failed
        self._client.message_callback = self._codec.on_message
        self._client.connect()

    def on_connection(self, connection: TcpConnection) -> None:
        """Send when it is up, leave when it is down."""
        if connection.connected:
            self._codec.send(connection, self._message)
        elif self.is_answered:
            self._loop.quit()
        else:
            self._fail("the server has hung up without an answer")

    def on_connect_failed(self, client: TcpClient, error: Exception) -> None:
        """Leave without an answer."""
        self._fail(f"can't connect: {error}")

    def on_answer(self, connection: TcpConnection, answer: Answer, receive_time: Timestamp) -> None:
        """Print it."""
        self.is_answered = True
        answerer, questioner = printable(answer.answerer), printable(answer.questioner)
        print(f"{answerer} answers {questioner}, query {answer.id}:")
        for solution in answer.solution:
            print(printable(solution))
        connection.shutdown()

    def on_unknown_message(self, connection: TcpConnection, message: Message, receive_time: Timestamp) -> None:
        """Tell which it was, and go on."""
        logging.warning("a %s, and no answer", message.DESCRIPTOR.full_name)

    def on_time_out(self) -> None:
        """Leave without an answer."""
        self._fail(f"no answer, and no end, in {_PATIENCE_S:.0f} seconds")

    def _fail(self, why: str) -> None:
        self.failure = why
        self._loop.quit()


def printable(field: str | bytes) -> str:
    """Return what is safe to print."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text_of(field))


def main() -> None:
    """Ask, and leave with code 1 if there is no answer."""
    parser = argparse.ArgumentParser(description="query client: asks over protobuf and prints the answer")
    parser.add_argument("question", nargs="*", help="as many as you wish")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=2011, help="default %(default)s")
    parser.add_argument("--name", default="somebody", help="who asks; default %(default)s")
    parser.add_argument("--empty", action="store_true", help="send a message that the server does not expect")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    message: Message = Empty(id=1)
    if not options.empty:
        message = Query(id=1, questioner=options.name, question=options.question)
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            client = QueryClient(loop, options.host, options.port, message)
        except ValueError as e:
            parser.error(str(e))
        loop.run_after(_PATIENCE_S, client.on_time_out)
        loop.run()
        failure = client.failure  # what ends from here on, we end
        if failure is None and not client.is_answered:
            failure = "interrupted"
    sys.exit(failure)


if __name__ == "__main__":
    main()
