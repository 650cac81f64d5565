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


def main() -> None:
    """Answer, or ask; until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="measures round trips and clock offsets with datagrams")
    parser.add_argument("--port", type=int, default=3123, help="the server's; 0 lets the kernel choose; default 3123")
    parser.add_argument("--to", type=InetAddress.parse, help="be the client of the server at host:port")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between questions; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        if options.to is None:
            udp = UdpSocket(loop, InetAddress.any(options.port))
            udp.message_callback = answer
            logging.info("roundtrip listens on %s, UDP", udp.address)
        else:
            udp = UdpSocket(loop, family=options.to.family)
            udp.message_callback = report
            udp.connect(options.to)

            def ask() -> None:
                udp.send(_MESSAGE.pack(Timestamp.now().us, 0))

            loop.run_every(options.every, ask)
        udp.start()
        loop.run()


if __name__ == "__main__":
    main()
