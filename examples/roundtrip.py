"""Round trip: how long a datagram takes to another machine and back, and how far that machine's clock is off.

What it teaches: datagrams, a timer that sends them, and a message of two numbers. The client sends the time at which
it sends; the server adds its own time and sends both back. If both ways took equally long, the server looked at its
clock in the middle between the client's sending and receiving: what is missing to that is the offset of the clocks.

    python roundtrip.py                             and elsewhere        python roundtrip.py --to 127.0.0.1:3123
"""

from __future__ import annotations

import argparse
import logging
import struct

from pymuduo import EventLoop, InetAddress, Timestamp, UdpSocket

_MESSAGE = struct.Struct("!qq")  # microseconds since 1970: the client's clock, the server's (0 from the client)


def answer(udp: UdpSocket, data: bytes, sender: InetAddress, receive_time: Timestamp) -> None:
    """Add the server's time, and send it back to whoever asked."""
    if len(data) == _MESSAGE.size:
        sent_us, _ = _MESSAGE.unpack(data)
        udp.send_to(_MESSAGE.pack(sent_us, receive_time.us), sender)


def report(udp: UdpSocket, data: bytes, sender: InetAddress, receive_time: Timestamp) -> None:
    """Print what an answer tells."""
    if len(data) == _MESSAGE.size:
        sent_us, theirs_us = _MESSAGE.unpack(data)
        back_us = receive_time.us
        print(f"round trip {back_us - sent_us} us, clock offset {theirs_us - (sent_us + back_us) // 2} us", flush=True)


def serve(loop: EventLoop, port: int) -> None:
    """Answer whoever asks."""
    udp = UdpSocket(loop, InetAddress.any(port))
    udp.message_callback = answer
    logging.info("roundtrip listens on %s, UDP", udp.address)
    udp.start()


def ask_every(loop: EventLoop, server: InetAddress, seconds: float) -> None:
    """Ask again and again."""
    udp = UdpSocket(loop, family=server.family)
    udp.message_callback = report
    udp.error_callback = lambda udp, error: logging.warning("%s: %s", server, error)
    udp.connect(server)
    loop.run_every(seconds, lambda: udp.send(_MESSAGE.pack(Timestamp.now().us, 0)))
    udp.start()


def main() -> None:
    """Answer, or ask; until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="measures round trips and clock offsets with datagrams")
    parser.add_argument("--port", type=int, default=3123, help="the server's; 0 lets the kernel choose; default 3123")
    parser.add_argument("--to", metavar="HOST:PORT", help="be the client of the server there")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between questions; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            if options.to is None:
                serve(loop, options.port)
            else:
                ask_every(loop, InetAddress.parse(options.to), options.every)
        except (OSError, ValueError) as e:
            parser.error(str(e))
        loop.run()


if __name__ == "__main__":
    main()
