"""The suite's services on Twisted's protocols.

echo   ``dataReceived`` → ``transport.write``
line   a ``LineOnlyReceiver``
frame  an ``Int32StringReceiver``
"""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False, allow-untyped-calls
from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as its_reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import Int32StringReceiver, LineOnlyReceiver

from peers import command


class NoDelay(Protocol):
    """A connection whose small answers leave at once."""

    transport: Any  # by its interface it may be none, and has no such option

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        """Set it up."""
        self.transport.setTcpNoDelay(True)


class Echo(NoDelay):
    """Sends back what arrives."""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        """Send it back."""
        self.transport.write(data)


class LineEcho(NoDelay, LineOnlyReceiver):
    """Sends back each line."""

    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:  # noqa: N802 - Twisted's name
        """Send it back."""
        self.sendLine(line)


class FrameEcho(NoDelay, Int32StringReceiver):
    """Sends back each frame."""

    def stringReceived(self, string: bytes) -> None:  # noqa: N802 - Twisted's name
        """Send it back."""
        self.sendString(string)


SERVICES: dict[str, type[NoDelay]] = {"echo": Echo, "line": LineEcho, "frame": FrameEcho}


def main() -> None:
    """Parse the command line and serve until SIGTERM or SIGINT, which the reactor handles."""
    options = command.parse(command.parser(__doc__, SERVICES))
    reactor = cast(Any, its_reactor)  # typed as a module
    factory = Factory.forProtocol(SERVICES[options.mode])
    factory.noisy = False
    port = reactor.listenTCP(options.port, factory, backlog=command.BACKLOG, interface="127.0.0.1")
    reactor.callWhenRunning(command.announce, port.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main()
