"""pymuduo: a multi-threaded TCP server library, one event loop per thread. See the README."""

from pymuduo import _sys
from pymuduo.acceptor import Acceptor
from pymuduo.buffer import Buffer
from pymuduo.channel import Channel
from pymuduo.connection_limits import ConnectionLimits
from pymuduo.connection_pool import ConnectionPool, Lease, PoolStats
from pymuduo.connector import Connector, ConnectorState
from pymuduo.event_loop import EventLoop, LoopStats
from pymuduo.event_loop_thread import EventLoopThread
from pymuduo.event_loop_thread_pool import EventLoopThreadPool
from pymuduo.idle_timeouts import IdleKind, IdleTimeouts
from pymuduo.inet_address import InetAddress
from pymuduo.inherited_sockets import handover_environment, inherited_sockets
from pymuduo.layer import Layer
from pymuduo.pipe import Pipe, pipe
from pymuduo.poller import EPollPoller, Poller, PollPoller
from pymuduo.proxy_protocol import (
    ProxyHeader,
    ProxyProtocol,
    ProxyProtocolError,
    ProxySsl,
    ProxyTlv,
    encode_proxy_header,
    parse_proxy_header,
)
from pymuduo.resolver import Resolver
from pymuduo.send_file import send_file
from pymuduo.socket import PeerCredentials, Socket, TcpInfo
from pymuduo.tcp_client import TcpClient
from pymuduo.tcp_connection import ConnectionState, TcpConnection
from pymuduo.tcp_server import ServerStats, TcpServer
from pymuduo.timer_queue import Timer
from pymuduo.timestamp import Timestamp
from pymuduo.tls import TlsLayer, start_tls
from pymuduo.udp_socket import UdpSocket
from pymuduo.unix_address import UnixAddress

__version__ = "0.1.0"

COMPILED: bool = not str(_sys.__file__).endswith(".py")
"""Whether the compiled build is running (False: plain Python, built with ``PYMUDUO_PURE=1``)."""

__all__ = [
    "COMPILED",
    "Acceptor",
    "Buffer",
    "Channel",
    "ConnectionLimits",
    "ConnectionPool",
    "ConnectionState",
    "Connector",
    "ConnectorState",
    "EPollPoller",
    "EventLoop",
    "EventLoopThread",
    "EventLoopThreadPool",
    "IdleKind",
    "IdleTimeouts",
    "InetAddress",
    "Layer",
    "Lease",
    "LoopStats",
    "PeerCredentials",
    "Pipe",
    "PollPoller",
    "Poller",
    "PoolStats",
    "ProxyHeader",
    "ProxyProtocol",
    "ProxyProtocolError",
    "ProxySsl",
    "ProxyTlv",
    "Resolver",
    "ServerStats",
    "Socket",
    "TcpClient",
    "TcpConnection",
    "TcpInfo",
    "TcpServer",
    "Timer",
    "Timestamp",
    "TlsLayer",
    "UdpSocket",
    "UnixAddress",
    "__version__",
    "encode_proxy_header",
    "handover_environment",
    "inherited_sockets",
    "parse_proxy_header",
    "pipe",
    "send_file",
    "start_tls",
]
