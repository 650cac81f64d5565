"""Query server: protobuf messages in muduo's frames, each to the function for its type. Talks to muduo's query client.

What it teaches: messages as objects. The codec finds the class by the name that travels with each message, checks and
parses; the dispatcher knows a function for every class that this program wants, and one for all others. So no function
here sees a byte, or a message of another type than it says. A peer may send any type that this process has loaded,
but no frame that is none: that is logged, and ends the connection.

It answers the first query and hangs up, as muduo's does. Nothing is shared between connections, so with ``--threads``
nothing is locked.

    python server.py        and elsewhere        python client.py "Running?" "Who am I?"
"""

from __future__ import annotations

import argparse
import logging
import socket
import time

from google.protobuf.message import Message

from pymuduo import EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec.protobuf import ProtobufCodec, ProtobufDispatcher
from query_messages import Answer, Query, text_of

_MAX_FRAME_BYTES = 65536
_MAX_NAME_CHARS = 200
_MAX_QUESTIONS = 100
_IDLE_S = 60.0
_PATIENCE_S = 10.0


class QueryServer:
    """Answers queries; knows a little about itself and about who asks."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._dispatcher = ProtobufDispatcher(self.on_unknown_message)
        self._dispatcher.register(Query, self.on_query)
        self._dispatcher.register(Answer, self.on_answer)
        self.codec = ProtobufCodec(self.on_message, max_bytes=_MAX_FRAME_BYTES)

    def on_message(self, connection: TcpConnection, message: Message, receive_time: Timestamp) -> None:
        """Pass the first message on; the connection is ending when another one comes."""
        if connection.connected:
            self._dispatcher.on_message(connection, message, receive_time)

    def on_query(self, connection: TcpConnection, query: Query, receive_time: Timestamp) -> None:
        """Answer every question, and hang up."""
        logging.info("%s asks %d questions", connection.peer_address, len(query.question))
        answer = Answer(
            id=query.id,
            questioner=text_of(query.questioner)[:_MAX_NAME_CHARS],
            answerer=socket.gethostname(),
            solution=[self._solve(connection, question) for question in query.question[:_MAX_QUESTIONS]],
        )
        self.codec.send(connection, answer)
        hang_up(connection)

    def on_answer(self, connection: TcpConnection, answer: Answer, receive_time: Timestamp) -> None:
        """Hang up on who answers what was not asked."""
        logging.info("%s answers what was not asked", connection.peer_address)
        hang_up(connection)

    def on_unknown_message(self, connection: TcpConnection, message: Message, receive_time: Timestamp) -> None:
        """Hang up on who sends anything else."""
        logging.info("%s sends a %s", connection.peer_address, message.DESCRIPTOR.full_name)
        hang_up(connection)

    def _solve(self, connection: TcpConnection, question: str) -> str:
        if question == "Running?":
            return f"for {time.monotonic() - self._started:.0f} seconds"
        if question == "Who am I?":
            return str(connection.peer_address)
        if question == "What time is it?":
            return time.strftime("%Y-%m-%d %H:%M:%S %Z")
        return "nobody knows"


def hang_up(connection: TcpConnection) -> None:
    """End in good order, and not too late."""
    connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="query server: answers protobuf messages")
    parser.add_argument("--port", type=int, default=2011, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "query")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.message_callback = QueryServer().codec.on_message
        server.idle_timeouts = IdleTimeouts(both_s=_IDLE_S)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
