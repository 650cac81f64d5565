"""pymuduo: a multi-threaded TCP server library, one event loop per thread. See the README."""

from pymuduo import _sys
from pymuduo.acceptor import Acceptor
from pymuduo.buffer import Buffer
from pymuduo.channel import Channel
from pymuduo.event_loop import EventLoop, LoopStats
from pymuduo.event_loop_thread import EventLoopThread
from pymuduo.event_loop_thread_pool import EventLoopThreadPool
from pymuduo.inet_address import InetAddress
from pymuduo.layer import Layer
from pymuduo.poller import EPollPoller, Poller, PollPoller
from pymuduo.send_file import send_file
from pymuduo.socket import Socket, TcpInfo
from pymuduo.tcp_connection import ConnectionState, TcpConnection
from pymuduo.tcp_server import ServerStats, TcpServer
from pymuduo.timer_queue import Timer
from pymuduo.timestamp import Timestamp

__version__ = "0.1.0"

COMPILED: bool = not str(_sys.__file__).endswith(".py")
"""Whether the compiled build is running (False: plain Python, built with ``PYMUDUO_PURE=1``)."""

__all__ = [
    "COMPILED",
    "Acceptor",
    "Buffer",
    "Channel",
    "ConnectionState",
    "EPollPoller",
    "EventLoop",
    "EventLoopThread",
    "EventLoopThreadPool",
    "InetAddress",
    "Layer",
    "LoopStats",
    "PollPoller",
    "Poller",
    "ServerStats",
    "Socket",
    "TcpConnection",
    "TcpInfo",
    "TcpServer",
    "Timer",
    "Timestamp",
    "__version__",
    "send_file",
]
