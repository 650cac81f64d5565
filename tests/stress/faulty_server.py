"""Servers and clients whose system calls fail on command: run by ``test_faults.py`` under ``native/faults.c``.

The process is told what to do by lines of JSON on its standard input, and answers each with one. The servers' base loop
is the main thread's; what goes wrong in it is kept and told, and the loop runs on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pymuduo import (
    Buffer,
    EventLoop,
    InetAddress,
    TcpClient,
    TcpConnection,
    TcpServer,
    Timestamp,
    UdpSocket,
    UnixAddress,
    send_file,
)
from pymuduo.codec import LengthHeaderCodec

PATIENCE_S = 20.0


class Faults:
    """What ``native/faults.c`` can be told."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        number, long, unsigned = ctypes.c_int, ctypes.c_long, ctypes.c_ulong
        self._library.faults_arm.argtypes = [number, long, long, unsigned, number, unsigned]
        self._library.faults_arm.restype = None
        self._library.faults_disarm.restype = long
        self._library.faults_calls.restype = long

    def arm(self, kind: str, *settings: int) -> None:
        """Let calls of a kind fail, and count them."""
        number = self._library.faults_kind(kind.encode())
        assert number, kind
        self._library.faults_arm(number, *settings)

    def disarm(self) -> dict[str, int]:
        """Let nothing fail; return how often something did, and how many calls there were."""
        struck = self._library.faults_disarm()
        return {"struck": struck, "calls": self._library.faults_calls()}


class Fetch:
    """A client that wants back all that it sends, and then leaves in good order.

    Args:
        retry: it tries again until it has all; else the first connection has to do.
    """

    def __init__(
        self, loop: EventLoop, target: InetAddress, data: bytes, tls: ssl.SSLContext | None, retry: bool
    ) -> None:
        self.data = data
        self.received = bytearray()
        self.wrong: list[str] = []
        self.done = threading.Event()
        self.client = TcpClient(
            loop,
            target,
            "fetch",
            retry=retry,
            retry_delay_s=0.005,
            max_retry_delay_s=0.02,
            ssl_context=tls,
            server_hostname="localhost" if tls else None,
        )
        self.client.connection_callback = self._on_connection
        self.client.message_callback = self._on_message
        self.client.connect_failed_callback = self._on_failure
        self.client.connect()

    def outcome(self) -> str:
        """Wait for the end, and return what was wrong with it: nothing, as a rule."""
        if not self.done.wait(PATIENCE_S):
            return f"{self.client!r} has got {len(self.received)} of {len(self.data)} bytes"
        return ", ".join(self.wrong)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.received.clear()
            connection.send(self.data)
        elif len(self.received) == len(self.data):
            self.done.set()
        elif not self.client.retry:
            self._give_up(f"ended after {len(self.received)} bytes: {connection.error!r}")

    def _on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        self.received += buffer.retrieve_all_as_bytes()
        if not self.data.startswith(self.received):
            self.wrong.append("what came back is not what was sent")
        if len(self.received) >= len(self.data):
            self.client.disconnect()

    def _on_failure(self, client: TcpClient, error: Exception) -> None:
        if not self.client.retry or not isinstance(error, OSError) or not error.errno:
            self._give_up(f"failed with {error!r}")

    def _give_up(self, reason: str) -> None:
        self.wrong.append(reason)
        if not self.client.retry:
            self.done.set()


class Process:
    """The servers, and what they are told.

    Args:
        folder: holds ``file``, and with TLS the certificates; the Unix socket comes here.
    """

    def __init__(self, loop: EventLoop, thread_num: int, folder: Path) -> None:
        self.loop = loop
        self.faults = Faults()
        self.errors: list[str] = []
        self.fetches: list[Fetch] = []
        self.folder = folder
        self.file = (folder / "file").open("rb")
        codec = LengthHeaderCodec(answer)
        self._watch(loop)
        self.servers = {
            "plain": TcpServer(loop, InetAddress.any(0), "plain"),
            "clients": TcpServer(loop, InetAddress.any(0), "clients"),  # nobody else sends to these
            "frames": TcpServer(loop, InetAddress.any(0), "frames"),
            "files": TcpServer(loop, UnixAddress(str(folder / "socket")), "files"),
        }
        self.servers["plain"].message_callback = self.servers["clients"].message_callback = echo
        self.servers["frames"].message_callback = codec.on_message
        self.servers["files"].message_callback = self._serve_file
        self.client_context: ssl.SSLContext | None = None
        if (folder / "key.pem").exists():
            self._make_tls_server()
        for server in self.servers.values():
            server.thread_num = thread_num
            server.thread_init_callback = self._watch
            server.start()
        self.datagrams = UdpSocket(loop, InetAddress.loopback(0))
        self.datagrams.message_callback = self._answer_datagram
        self.datagrams.start()
        # Where these go nobody is: what is connected to itself takes nothing from others.
        self.deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.deaf.bind(("127.0.0.1", 0))
        self.deaf.connect(self.deaf.getsockname())
        self.unheard = UdpSocket(loop, InetAddress.loopback(0))
        self.unheard.connect(InetAddress.loopback(self.deaf.getsockname()[1]))
        self.unheard.start()

    def _watch(self, loop: EventLoop) -> None:
        """Keep what goes wrong in a loop."""
        loop.exception_handler = lambda exception, source: self.errors.append(f"{exception!r} of {source!r}")

    def _make_tls_server(self) -> None:
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client_context.load_verify_locations(self.folder / "trusted.pem")
        self.servers["tls"] = TcpServer(self.loop, InetAddress.any(0), "tls", ssl_context=server_context)
        self.servers["tls"].message_callback = echo
        self.servers["tls-files"] = TcpServer(self.loop, InetAddress.any(0), "tls-files", ssl_context=server_context)
        self.servers["tls-files"].message_callback = self._serve_open_file

    def _serve_file(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Answer the first line with the file, and hear of nothing else until it is told to."""
        if connection.context is not None:
            connection.send(buffer)
        elif buffer.find(b"\n") >= 0:
            connection.context = buffer.retrieve_all_as_bytes()
            connection.stop_read()
            try:
                send_file(connection, self.folder / "file")
            except OSError:  # it can't be opened
                connection.force_close()

    def _serve_open_file(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Answer a line with the file."""
        if buffer.find(b"\n") >= 0:
            buffer.retrieve_all()
            try:
                send_file(connection, self.file)
            except OSError:  # its descriptor can't be duplicated
                connection.force_close()

    def _answer_datagram(self, sock: UdpSocket, data: bytes, sender: InetAddress, receive_time: Timestamp) -> None:
        """Send it back; the shortest also goes to where nobody is."""
        sock.send_to(data, sender)
        if len(data) == 2:
            self.unheard.send(data)

    def obey(self) -> None:
        """Do what standard input says, until it ends; in a thread of its own."""
        is_finished = False

        def finish() -> None:
            nonlocal is_finished
            is_finished = True
            self.loop.quit()

        def read_orders() -> None:
            ports = {name: getattr(server.address, "port", 0) for name, server in self.servers.items()}
            self._answer({"ports": {**ports, "datagrams": getattr(self.datagrams.address, "port", 0)}})
            for line in sys.stdin:
                order, *arguments = json.loads(line)
                self._answer(getattr(self, f"do_{order}")(*arguments))
            self.loop.queue_in_loop(finish)

        thread = threading.Thread(target=read_orders)
        thread.start()
        while not is_finished:
            try:
                self.loop.run()
            except OSError as e:
                self.errors.append(f"run: {e}")
        thread.join()

    @staticmethod
    def _answer(what: object) -> None:
        print(json.dumps(what), flush=True)

    def _in_loop(self, what: Callable[[], dict[str, int]]) -> dict[str, int]:
        """Return what the base loop says: nothing if it does not answer."""

        def ask() -> None:
            answer.update(what())
            done.set()

        answer: dict[str, int] = {}
        done = threading.Event()
        self.loop.queue_in_loop(ask)
        return answer if done.wait(PATIENCE_S) else {}

    # --- orders ---

    def do_arm(self, *settings: Any) -> None:
        """Let calls fail."""
        self.faults.arm(*settings)

    def do_disarm(self) -> dict[str, int]:
        """Let nothing fail, and tell what did."""
        return self.faults.disarm()

    def do_state(self) -> dict[str, int]:
        """Tell what there is."""
        return self._in_loop(
            lambda: {
                "connections": sum(server.connection_count for server in self.servers.values()),
                "descriptors": len(os.listdir("/proc/self/fd")),
            }
        )

    def do_datagrams(self) -> dict[str, int]:
        """Tell how many have come, and what became of the answers; and how often it was told that nobody is there."""
        sock = self.datagrams
        return self._in_loop(
            lambda: {
                "received": sock.datagrams_received,
                "sent": sock.datagrams_sent,
                "dropped": sock.dropped,
                "queued": sock.queued_bytes,
                "errors": sock.errors,
                "refused": self.unheard.errors,
            }
        )

    def do_errors(self) -> list[str]:
        """Tell what went wrong since this was last asked."""
        errors = self.errors[:]
        del self.errors[: len(errors)]  # other loops append
        return errors

    def do_send(self, text: str) -> None:
        """Send to everybody, from this thread."""
        for connection in self.servers["plain"].connections:
            connection.send(text.encode())

    def do_start_read(self) -> None:
        """Let those read again who got a file, once their loop has seen what has come by now."""
        for connection in self.servers["files"].connections:
            connection.loop.queue_in_loop(connection.loop.queue_in_loop, connection.start_read)

    def do_fetch(self, name: str, retry: bool) -> None:
        """Let a client begin to talk to a server."""
        port = self.servers[name].address.port
        context = self.client_context if name == "tls" else None
        data = (self.folder / "file").read_bytes()[:100_000]
        self.fetches.append(Fetch(self.loop, InetAddress.loopback(port), data, context, retry))

    def do_fetched(self) -> str:
        """Wait for the clients, and tell what is wrong with what they got."""
        fetches, self.fetches = self.fetches, []
        return ", ".join(filter(None, [fetch.outcome() for fetch in fetches]))

    @staticmethod
    def do_new_server() -> str:
        """Make a loop, a server and a UDP socket in a thread of its own, let them go, and tell what went wrong."""
        error = ""

        def make() -> None:
            nonlocal error
            try:
                with EventLoop() as loop:
                    server = TcpServer(loop, InetAddress.any(0), "new")
                    server.thread_num = 1
                    server.start()
                    datagrams = UdpSocket(loop, InetAddress.loopback(0))
                    datagrams.connect(datagrams.address)
                    datagrams.start()
                    loop.run_after(0, loop.quit)
                    loop.run()
            except OSError as e:
                error = str(e)

        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        return "it never ended" if thread.is_alive() else error


def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back what has come, in two pieces."""
    half = len(buffer) // 2
    connection.send(buffer.retrieve_as_bytes(half))
    connection.send(buffer)


def answer(connection: TcpConnection, message: bytes, receive_time: Timestamp) -> None:
    """Send a message back, and hang up after the last one."""
    connection.send(len(message).to_bytes(4, "big") + message)
    if message == b"bye":
        connection.shutdown()


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' Ctrl-C is not ours
    loop = EventLoop()
    Process(loop, int(sys.argv[1]), Path(sys.argv[2])).obey()
    loop.close()


if __name__ == "__main__":
    main()
