"""A server whose system calls fail on command: run by ``test_faults.py`` under ``native/faults.c``.

It is told what to do by lines on its standard input, and answers each with one line of JSON. The loop is the main
thread's; what goes wrong in it is kept and told, and the loop runs on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

PATIENCE_S = 20.0


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' Ctrl-C is not ours
    native = ctypes.CDLL(None)
    native.faults_arm.argtypes = [
        ctypes.c_int,
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_ulong,
        ctypes.c_int,
        ctypes.c_ulong,
    ]
    native.faults_disarm.restype = ctypes.c_long
    loop = EventLoop()
    errors: list[str] = []
    loop.exception_handler = lambda exception, source: errors.append(repr(exception))
    server = TcpServer(loop, InetAddress.loopback(0), "faulty")
    server.thread_num = int(sys.argv[1])
    server.message_callback = echo
    server.start()

    def state() -> dict[str, Any]:
        return {
            "connections": server.connection_count,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "errors": list(errors),
        }

    def obey() -> None:
        answer({"port": server.address.port, **call(loop, state)})
        for line in sys.stdin:
            order, *arguments = json.loads(line)
            if order == "arm":
                name, *numbers = arguments
                kind = native.faults_kind(name.encode())
                assert kind, name
                native.faults_arm(kind, *numbers)
                answer({})
            elif order == "disarm":
                answer({"calls": native.faults_disarm()})
            elif order == "state":
                answer(call(loop, state))
            elif order == "send":  # to everybody, from this thread
                for connection in server.connections:
                    connection.send(arguments[0].encode())
                answer({})
            elif order == "new loop":
                answer({"error": new_loop()})
        loop.queue_in_loop(finish)

    is_finished = False

    def finish() -> None:
        nonlocal is_finished
        is_finished = True
        loop.quit()

    thread = threading.Thread(target=obey)
    thread.start()
    while not is_finished:
        try:
            loop.run()
        except OSError as e:
            errors.append(f"run: {e}")
    thread.join()
    loop.close()


def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back what has come, in two pieces."""
    half = len(buffer) // 2
    connection.send(buffer.retrieve_as_bytes(half))
    connection.send(buffer)


def new_loop() -> str:
    """Make a loop in a thread of its own, and let it go; return what went wrong."""
    error = ""

    def make() -> None:
        nonlocal error
        try:
            with EventLoop() as loop:
                loop.run_after(0, loop.quit)
                loop.run()
        except OSError as e:
            error = str(e)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return error


def call(loop: EventLoop, fn: Any) -> Any:
    """Call *fn* in the loop's thread, and return its result; an empty one if the loop does not answer."""
    done = threading.Event()
    result: list[Any] = []

    def run() -> None:
        result.append(fn())
        done.set()

    loop.queue_in_loop(run)
    return result[0] if done.wait(PATIENCE_S) else {"errors": ["the loop is dead"]}


def answer(what: dict[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
