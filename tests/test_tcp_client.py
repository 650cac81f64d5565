"""TcpClient: up, down and again; its doors in every state, from its own and other threads; who keeps it, and how long.

What a round of connecting does, and its back-off, is tested in test_connector.py.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import PATIENCE_S, Received, call_in_loop, eventually, open_descriptors, receive_all, reset
from pymuduo import (
    Buffer,
    ConnectionState,
    ConnectorState,
    EventLoop,
    EventLoopThread,
    IdleTimeouts,
    InetAddress,
    TcpClient,
    TcpConnection,
    Timestamp,
    UnixAddress,
)
from targets import BlackHoles, FakeResolver, address_of, listener, nobody

SOON_S = 0.001  # a back-off for tests that need several
LONG_S = 1000.0
ENOUGH_UPS = 10  # of a stress: its threads have got something done


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


class Heard:
    """What a client's callbacks have said."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.errors: list[Exception] = []
        self.received = Received()
        self.connections: list[TcpConnection] = []

    def attach(self, client: TcpClient) -> None:
        client.connection_callback = self.on_connection
        client.message_callback = self.on_message
        client.connect_failed_callback = self.on_failed

    def on_connection(self, connection: TcpConnection) -> None:
        self.events.append("up" if connection.connected else "down")
        if connection.connected:
            self.connections.append(connection)

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        self.received += buffer.retrieve_all_as_bytes()

    def on_failed(self, client: TcpClient, error: Exception) -> None:
        self.events.append("failed")
        self.errors.append(error)

    def wait_for(self, *events: str) -> None:
        try:
            eventually(lambda: self.events == list(events))
        except AssertionError:
            assert self.events == list(events)


def close_if_there(client: weakref.ref[TcpClient]) -> None:
    there = client()
    if there is not None:
        there.close()


class Kit:
    """Clients of one loop and the places they connect to; everything ends with the test."""

    def __init__(self, loop: EventLoop, stack: contextlib.ExitStack) -> None:
        self.loop = loop
        self._stack = stack
        self.black_hole = BlackHoles(stack)
        self.listener = functools.partial(listener, stack)

    def client(self, target: Any, **settings: Any) -> tuple[TcpClient, Heard]:
        client = TcpClient(self.loop, target, "client", **settings)
        heard = Heard()
        heard.attach(client)
        self._stack.callback(close_if_there, weakref.ref(client))
        return client, heard

    def resolver(self, *addresses: InetAddress) -> FakeResolver:
        resolver = FakeResolver(*addresses)
        self._stack.callback(resolver.end)
        return resolver

    def client_for(self, state: str) -> tuple[TcpClient, Heard]:
        """Return a client that ``enter`` can bring into a state. It retries, after a time that no test waits for."""
        settings: dict[str, Any] = {"retry": True, "retry_delay_s": LONG_S, "max_retry_delay_s": LONG_S}
        target: Any = address_of(self.listener())
        if state == "looking up":
            target, settings["resolver"] = ("slow", 80), self.resolver()
        elif state == "connecting":
            target = self.black_hole()
        elif state == "waiting":
            target = nobody()
        elif state == "handshake":
            settings["ssl_context"] = ssl.create_default_context()
        return self.client(target, **settings)


STATES = ("idle", "looking up", "connecting", "waiting", "handshake", "up", "going down")


def enter(client: TcpClient, state: str) -> None:
    """Bring a client into a state; from a thread that is not its loop's."""
    if state == "idle":
        return
    client.connect()
    eventually(lambda: is_in(client, "up" if state == "going down" else state))
    if state == "going down":
        client.disconnect()
        eventually(lambda: is_in(client, state))
    settle(client.loop)  # whom it tells of the state has been told


def is_in(client: TcpClient, state: str) -> bool:
    connection, connector = client._connection, client._connector
    if connection is not None:
        return connection.state is {
            "handshake": ConnectionState.CONNECTING,
            "up": ConnectionState.CONNECTED,
            "going down": ConnectionState.DISCONNECTING,
        }.get(state)
    if state in ("looking up", "connecting"):
        return connector.state is ConnectorState.CONNECTING and (connector._lookup is not None) == (
            state == "looking up"
        )
    return connector.state is {"idle": ConnectorState.IDLE, "waiting": ConnectorState.WAITING}.get(state)


@pytest.fixture
def kit(loop_thread: EventLoop) -> Iterator[Kit]:
    """Return what makes clients in a loop of its own thread."""
    with contextlib.ExitStack() as stack:
        yield Kit(loop_thread, stack)


@pytest.fixture
def own_kit(loop: EventLoop) -> Iterator[Kit]:
    """Return what makes clients in the test's own loop."""
    with contextlib.ExitStack() as stack:
        yield Kit(loop, stack)


def settle(loop: EventLoop) -> None:
    """Let the loop do what is queued, and what that queues."""
    for _ in range(4):
        call_in_loop(loop, lambda: None)


def in_other_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def is_collected(gone: weakref.ref[Any]) -> bool:
    gc.collect()
    return gone() is None


# --- up and down ---


def test_it_connects_talks_and_hears_of_the_end(serve, kit):
    server = serve(1, message_callback=echo)
    client, heard = kit.client(InetAddress.loopback(server.port))
    assert client.connection is None
    client.connect()
    heard.wait_for("up")
    assert client.connection is heard.connections[0]
    client.connection.send(b"hello")
    eventually(lambda: bytes(heard.received) == b"hello")
    client.disconnect()
    heard.wait_for("up", "down")
    assert client.connection is None
    eventually(lambda: server.server.connection_count == 0)


def test_connections_are_numbered_and_know_both_ends(serve, kit):
    server = serve(0)
    target = InetAddress.loopback(server.port)
    client, heard = kit.client(target)
    for number in (1, 2):
        client.connect()
        heard.wait_for(*["up", "down"] * (number - 1), "up")
        connection = heard.connections[-1]
        assert connection.name == f"client-{target}#{number}"
        assert connection.peer_address == target
        accepted = eventually(lambda: server.server.connections)[0]
        assert connection.local_address == accepted.peer_address
        client.disconnect()
        heard.wait_for(*["up", "down"] * number)
        eventually(lambda: server.server.connection_count == 0)


def test_each_connection_gets_the_clients_callbacks_and_limits(kit):
    client, heard = kit.client(address_of(kit.listener()))
    names = [
        "write_complete_callback",
        "high_water_mark_callback",
        "low_water_mark_callback",
        "peer_shutdown_callback",
        "close_callback",
    ]
    for name in names:
        setattr(client, name, lambda *args: None)
    client.high_water_mark, client.low_water_mark, client.max_output_bytes = 1000, 100, 10000
    client.connect()
    heard.wait_for("up")
    for name in [*names, "message_callback", "high_water_mark", "low_water_mark", "max_output_bytes"]:
        assert getattr(heard.connections[0], name) == getattr(client, name)


def test_disconnect_sends_everything_before_fin(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    accepted, _ = listening.accept()
    with accepted:
        accepted.settimeout(PATIENCE_S)
        heard.wait_for("up")
        for number in range(100):
            client.connection.send(b"%08d" % number * 10000)
        client.disconnect()
        assert receive_all(accepted) == b"".join(b"%08d" % number * 10000 for number in range(100))
    heard.wait_for("up", "down")


def test_close_drops_what_is_unsent_and_the_client_is_of_no_further_use(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    heard.wait_for("up")
    call_in_loop(kit.loop, lambda: (client.connection.send(bytes(1 << 26)), client.close()))
    heard.wait_for("up", "down")
    client.close()
    for door in (client.disconnect, client.stop):
        door()
    with pytest.raises(RuntimeError, match=r"'client'.* closed"):
        client.connect()
    assert "closed" in repr(client)


def test_a_client_is_closed_at_the_end_of_its_block(kit):
    listening = kit.listener()
    with TcpClient(kit.loop, address_of(listening), "brief") as client:
        client.connect()
        accepted, _ = listening.accept()
    with accepted:
        accepted.settimeout(PATIENCE_S)
        assert receive_all(accepted) == b""


def test_the_peers_fin_ends_the_connection_without_an_error(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    accepted, _ = listening.accept()
    accepted.sendall(b"goodbye")
    accepted.close()
    heard.wait_for("up", "down")
    assert bytes(heard.received) == b"goodbye"
    assert heard.connections[0].error is None


def test_nothing_comes_up_or_fails_once_another_thread_has_closed_the_client(kit):
    """The close has yet to reach the loop, which goes on until then."""
    listening = kit.listener()
    for target in (address_of(listening), nobody()):
        client, heard = kit.client(target)

        def close_elsewhere(client: TcpClient = client) -> None:
            client.connect()
            kit.loop.queue_in_loop(in_other_thread, client.close)  # by then the kernel has connected, or failed to

        call_in_loop(kit.loop, close_elsewhere)
        eventually(lambda client=client: "closed" in repr(client))
        settle(kit.loop)
        eventually(lambda client=client: is_in(client, "idle"))
        assert heard.events == []


def test_no_callback_runs_inside_a_door(own_kit):
    client, heard = own_kit.client(address_of(own_kit.listener()))
    client.connect()
    assert heard.events == []
    client.stop()
    client.connect()
    run_until(own_kit.loop, lambda: client.connection)
    client.disconnect()
    client.close()
    assert heard.events == ["up"]
    run_until(own_kit.loop, lambda: heard.events == ["up", "down"])


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Run the test's own loop until something is true; fail if that takes too long."""

    def look() -> None:
        if condition():
            loop.quit()

    timers = [loop.run_every(0.001, look), loop.run_after(PATIENCE_S, loop.quit)]
    loop.run()
    for timer in timers:
        timer.cancel()
    assert condition(), "never came true"


# --- Unix sockets and names ---


def test_a_unix_socket_is_a_target(serve, kit, tmp_path):
    target = UnixAddress(tmp_path / "socket")
    serve(0, message_callback=echo, address=target)
    client, heard = kit.client(target)
    client.connect()
    heard.wait_for("up")
    connection = heard.connections[0]
    assert (connection.peer_address, connection.local_address) == (target, UnixAddress.unnamed())
    connection.send(b"hello")
    eventually(lambda: bytes(heard.received) == b"hello")


def test_a_unix_socket_that_is_missing_or_stale_is_tried_until_it_is_there(serve, kit, tmp_path):
    path = tmp_path / "socket"
    client, heard = kit.client(UnixAddress(path), retry=True, retry_delay_s=SOON_S, max_retry_delay_s=SOON_S)
    client.connect()
    eventually(lambda: heard.errors)
    assert isinstance(heard.errors[0], FileNotFoundError)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
        dead.close()
    eventually(lambda: isinstance(heard.errors[-1], ConnectionRefusedError))
    serve(0, address=UnixAddress(path))
    eventually(lambda: heard.events[-1] == "up")


def test_a_unix_socket_whose_queue_is_full_is_tried_until_it_has_room(kit, tmp_path):
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        listening, waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        listening.bind(path)
        listening.listen(0)
        waiting.connect(path)
        client, heard = kit.client(UnixAddress(path), retry=True, retry_delay_s=SOON_S, max_retry_delay_s=SOON_S)
        client.connect()
        eventually(lambda: heard.errors)
        assert isinstance(heard.errors[0], BlockingIOError)
        assert heard.events[-1] == "failed"
        listening.accept()[0].close()
        eventually(lambda: heard.events[-1] == "up")


def test_a_name_is_a_target(serve, kit):
    server = serve(0, message_callback=echo)
    client, heard = kit.client(("localhost", server.port))
    client.connect()
    heard.wait_for("up")
    assert client.connection.peer_address == InetAddress.loopback(server.port)


def test_a_name_that_does_not_exist_is_a_failure_that_names_it(kit):
    client, heard = kit.client(("nonexistent.invalid", 80))
    client.connect()
    heard.wait_for("failed")
    assert isinstance(heard.errors[0], OSError)
    assert "nonexistent.invalid" in str(heard.errors[0])


def test_the_loop_serves_others_while_a_name_is_looked_up(serve, kit):
    server = serve(0, message_callback=echo)
    slow, _ = kit.client(("slow", 80), resolver=kit.resolver())
    enter(slow, "looking up")
    client, heard = kit.client(InetAddress.loopback(server.port))
    client.connect()
    heard.wait_for("up")
    client.connection.send(b"hello")
    eventually(lambda: bytes(heard.received) == b"hello")
    assert is_in(slow, "looking up")


# --- failures ---


def test_a_closed_port_is_told_once_without_retry(kit):
    target = nobody()
    client, heard = kit.client(target)
    client.connect()
    heard.wait_for("failed")
    assert isinstance(heard.errors[0], ConnectionRefusedError)
    assert str(target) in str(heard.errors[0])
    settle(kit.loop)
    assert is_in(client, "idle")
    assert heard.events == ["failed"]


def test_a_failure_that_nobody_wants_to_hear_of_is_logged(kit, caplog):
    client, _ = kit.client(nobody())
    client.connect_failed_callback = None
    client.connect()
    eventually(lambda: "client: " in caplog.text)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "Connection refused" in record.getMessage()


@pytest.mark.provokes_errors("bad failed callback")
def test_a_failed_callback_that_raises_is_reported_and_it_goes_on_trying(kit, caplog):
    client, heard = kit.client(nobody(), retry=True, retry_delay_s=SOON_S)

    def fail(client: TcpClient, error: Exception) -> None:
        heard.on_failed(client, error)
        raise ValueError("bad failed callback")

    client.connect_failed_callback = fail
    client.connect()
    eventually(lambda: len(heard.errors) >= 3)
    client.stop()
    assert caplog.text.count("ValueError: bad failed callback") >= 2


@pytest.mark.parametrize("retry", [True, False])
def test_a_failed_callback_may_use_every_door(kit, retry):
    for door in ("connect", "stop", "disconnect", "close"):
        client, heard = kit.client(nobody(), retry=retry, retry_delay_s=SOON_S)

        def fail(client: TcpClient, error: Exception, heard: Heard = heard, door: str = door) -> None:
            heard.on_failed(client, error)
            if len(heard.errors) < 3 or door != "connect":
                getattr(client, door)()
            else:
                client.stop()

        client.connect_failed_callback = fail
        client.connect()
        eventually(lambda heard=heard, count=3 if door == "connect" else 1: len(heard.errors) == count)
        settle(kit.loop)
        assert is_in(client, "idle")
        assert len(heard.errors) == (3 if door == "connect" else 1)


def test_a_time_out_is_a_failure(kit):
    client, heard = kit.client(kit.black_hole(), connect_timeout_s=0.02)
    client.connect()
    heard.wait_for("failed")
    assert isinstance(heard.errors[0], TimeoutError)


def test_a_handshake_that_takes_too_long_is_a_failure(kit):
    client, heard = kit.client(
        address_of(kit.listener()), ssl_context=ssl.create_default_context(), handshake_timeout_s=0.02
    )
    client.connect()
    heard.wait_for("failed")
    assert isinstance(heard.errors[0], TimeoutError)


@pytest.mark.parametrize("how", ["fin", "reset", "nonsense"])
def test_a_handshake_that_the_peer_ends_is_a_failure_that_is_tried_again(kit, how):
    listening = kit.listener()
    client, heard = kit.client(
        address_of(listening), ssl_context=ssl.create_default_context(), retry=True, retry_delay_s=SOON_S
    )
    client.connect()
    for _ in range(3):
        accepted, _ = listening.accept()
        if how == "reset":
            reset(accepted)
            continue
        with accepted:
            if how == "nonsense":
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    eventually(lambda: len(heard.errors) >= 2)
    client.stop()
    assert set(heard.events) == {"failed"}
    assert all(isinstance(error, OSError) for error in heard.errors)


def test_a_tls_context_that_fits_no_client_is_a_failure(kit):
    client, heard = kit.client(
        address_of(kit.listener()), ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_hostname="localhost"
    )
    client.connect()
    heard.wait_for("failed")
    assert isinstance(heard.errors[0], (ssl.SSLError, ValueError))


def test_a_reset_is_told_by_the_connection(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    accepted, _ = listening.accept()
    heard.wait_for("up")
    reset(accepted)
    heard.wait_for("up", "down")
    assert isinstance(heard.connections[0].error, ConnectionResetError)


def test_a_reset_while_going_down_ends_it(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    enter(client, "up")
    accepted, _ = listening.accept()
    client.disconnect()
    assert accepted.recv(1) == b""
    reset(accepted)
    heard.wait_for("up", "down")
    settle(kit.loop)
    assert is_in(client, "idle")


# --- trying again ---


def test_it_connects_when_the_server_comes_up(kit):
    target = nobody()
    client, heard = kit.client(target, retry=True, retry_delay_s=SOON_S, max_retry_delay_s=SOON_S)
    client.connect()
    eventually(lambda: len(heard.errors) >= 3)
    kit.listener(target.port)
    eventually(lambda: heard.events[-1] == "up")


def test_a_lost_connection_is_made_again_with_retry(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry=True, retry_delay_s=SOON_S)
    client.connect()
    for count in range(1, 4):
        accepted, _ = listening.accept()
        eventually(lambda count=count: heard.events.count("up") == count)
        reset(accepted)
    eventually(lambda: heard.events[:6] == ["up", "down"] * 3)
    assert len({id(connection) for connection in heard.connections}) >= 3
    assert heard.errors == []


def test_a_lost_connection_stays_lost_without_retry(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    accepted, _ = listening.accept()
    heard.wait_for("up")
    reset(accepted)
    heard.wait_for("up", "down")
    settle(kit.loop)
    assert is_in(client, "idle")
    client.connect()
    listening.accept()[0].close()
    heard.wait_for("up", "down", "up", "down")


def test_a_connection_that_lasted_resets_the_back_off_and_one_that_did_not_does_not(kit, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    target = nobody()
    client, heard = kit.client(target, retry=True, retry_delay_s=0.01, max_retry_delay_s=LONG_S)
    client.connect()
    eventually(lambda: len(heard.errors) >= 3)
    listening = kit.listener(target.port)
    accepted, _ = listening.accept()
    eventually(lambda: client.connection)
    grown = client._connector.retry_delay_s
    assert grown >= 0.08
    up = time.monotonic()
    eventually(lambda: time.monotonic() - up > 2 * grown)
    caplog.clear()
    accepted.close()
    again, _ = listening.accept()  # at once
    eventually(lambda: client.connection)
    assert client._connector.retry_delay_s == 0.01
    assert caplog.records == []
    again.close()


def test_a_server_that_accepts_and_closes_is_not_besieged(kit, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry=True, retry_delay_s=LONG_S, max_retry_delay_s=LONG_S)
    client.connect()
    listening.accept()[0].close()
    heard.wait_for("up", "down")
    eventually(lambda: is_in(client, "waiting"))
    assert [record.args[1] for record in caplog.records] == [LONG_S]


def test_retry_may_be_changed_while_it_is_connected(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry_delay_s=SOON_S)
    client.connect()
    accepted, _ = listening.accept()
    assert client.retry is False
    client.retry = True
    assert client.retry is True
    accepted.close()
    again, _ = listening.accept()
    again.close()
    eventually(lambda: heard.events[:3] == ["up", "down", "up"])


@pytest.mark.parametrize("retry", [True, False])
def test_connect_in_the_callback_for_down_connects_again(kit, retry):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry=retry, retry_delay_s=SOON_S)

    def again(connection: TcpConnection) -> None:
        heard.on_connection(connection)
        if not connection.connected and len(heard.connections) < 3:
            client.connect()

    client.connection_callback = again
    client.connect()
    for _ in range(3):
        listening.accept()[0].close()
    eventually(lambda: heard.events[:6] == ["up", "down"] * 3)


def test_connect_in_the_callback_for_down_does_not_cut_the_back_off_short(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry=True, retry_delay_s=LONG_S, max_retry_delay_s=LONG_S)

    def again(connection: TcpConnection) -> None:
        heard.on_connection(connection)
        client.connect()

    client.connection_callback = again
    client.connect()
    listening.accept()[0].close()
    eventually(lambda: heard.events == ["up", "down"])
    settle(kit.loop)
    assert is_in(client, "waiting")


def test_connect_after_disconnect_connects_again_once_the_old_connection_is_gone(kit):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    client.connect()
    first, _ = listening.accept()
    heard.wait_for("up")
    client.disconnect()
    client.connect()
    client.connect()
    assert first.recv(1) == b""
    settle(kit.loop)
    assert heard.events == ["up"]
    first.close()
    second, _ = listening.accept()
    heard.wait_for("up", "down", "up")
    second.close()
    heard.wait_for("up", "down", "up", "down")
    settle(kit.loop)
    assert is_in(client, "idle")


def test_connect_after_stop_takes_the_stop_back(kit):
    """A stop leaves a connection that is up; whether it is made again afterwards is ``retry``'s business."""
    for retry in (True, False):
        listening = kit.listener()
        client, heard = kit.client(address_of(listening), retry=retry, retry_delay_s=SOON_S)
        client.connect()
        accepted, _ = listening.accept()
        heard.wait_for("up")
        client.stop()
        client.connect()
        settle(kit.loop)
        assert heard.events == ["up"]
        accepted.close()
        if retry:
            listening.accept()[0].close()
            eventually(lambda heard=heard: heard.events[:3] == ["up", "down", "up"])
            client.close()
        else:
            heard.wait_for("up", "down")
            settle(kit.loop)
            assert is_in(client, "idle")


# --- every door in every state ---

DOORS = ("stop", "disconnect", "close")
ENDS_CONNECTION = {("up", "close"), ("going down", "close")}
STAYS = {("up", "stop"), ("up", "disconnect"), ("going down", "stop"), ("going down", "disconnect")}


@pytest.mark.parametrize("thread", ["own", "other"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", STATES)
def test_a_door_ends_what_is_under_way_and_nothing_is_left(kit, state, door, thread):
    client, heard = kit.client_for(state)
    settle(kit.loop)
    before = len(open_descriptors())
    enter(client, state)
    events = heard.events[:]
    call = getattr(client, door)
    for _ in range(2):  # twice is harmless
        if thread == "own":
            call_in_loop(kit.loop, call)
        else:
            call()
    if (state, door) in STAYS:
        settle(kit.loop)
        assert is_in(client, "up" if door == "stop" and state == "up" else "going down")
        assert heard.events == events
        client.close()
    if (state, door) in ENDS_CONNECTION | STAYS:
        heard.wait_for(*events, "down")
    settle(kit.loop)
    assert is_in(client, "idle")
    assert heard.events == events + (["down"] if state in ("up", "going down") else [])
    assert call_in_loop(kit.loop, lambda: kit.loop.timer_count) == 0
    eventually(lambda: len(open_descriptors()) == before)


@pytest.mark.parametrize("state", STATES)
def test_connect_twice_is_connect_once(kit, state):
    client, heard = kit.client_for(state)
    enter(client, state)
    if state in ("idle", "going down"):
        return  # there it begins, or begins anew: other tests
    connection, events = client._connection, heard.events[:]
    timers = call_in_loop(kit.loop, lambda: kit.loop.timer_count)
    client.connect()
    call_in_loop(kit.loop, client.connect)
    settle(kit.loop)
    assert is_in(client, state)
    assert client._connection is connection
    assert heard.events == events
    assert call_in_loop(kit.loop, lambda: kit.loop.timer_count) == timers


@pytest.mark.parametrize("door", ["stop", "disconnect"])
@pytest.mark.parametrize("state", STATES)
def test_a_door_and_connect_in_the_same_iteration_begin_anew(kit, state, door):
    client, heard = kit.client_for(state)
    enter(client, state)
    events = heard.events[:]
    call_in_loop(kit.loop, lambda: (getattr(client, door)(), client.connect()))
    settle(kit.loop)
    if state == "going down" or (state, door) == ("up", "disconnect"):
        assert is_in(client, "going down")
        call_in_loop(kit.loop, client._connection.force_close)
        heard.wait_for(*events, "down", "up")
    elif state == "idle":
        heard.wait_for("up")
    else:
        eventually(lambda: is_in(client, state))


@pytest.mark.parametrize("door", DOORS)
def test_connect_and_a_door_in_the_same_iteration_do_nothing(kit, door):
    """muduo's test TcpClient_reg1 stops a client before its loop has got round to connecting."""
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    for _ in range(3):
        if client._is_closed:
            break
        call_in_loop(kit.loop, lambda: (client.connect(), getattr(client, door)()))
        client.stop()
    settle(kit.loop)
    assert heard.events == []
    listening.settimeout(0)
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.mark.parametrize("door", DOORS)
def test_every_door_may_be_used_in_the_connection_callback(kit, door):
    listening = kit.listener()
    client, heard = kit.client(address_of(listening), retry=True)

    def on_connection(connection: TcpConnection) -> None:
        heard.on_connection(connection)
        if door != "close" or connection.connected:  # later it is closed for good
            client.connect()
        getattr(client, door)()

    client.connection_callback = on_connection
    client.connect()
    accepted, _ = listening.accept()
    heard_up = heard.events == ["up"]
    if door != "stop":
        accepted.settimeout(PATIENCE_S)
        assert receive_all(accepted) == b""
    accepted.close()
    eventually(lambda: heard.events[:2] == ["up", "down"] or heard_up)
    eventually(lambda: is_in(client, "idle"))
    assert heard.events == ["up", "down"]


# --- who keeps it ---


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("thread", ["own", "other"])
def test_a_client_whose_last_reference_is_dropped_lives_on_while_something_is_under_way(kit, state, thread):
    """muduo's client must not be destroyed in another thread than its loop's, nor while it is connected (issue 194)."""
    client, heard = kit.client_for(state)
    enter(client, state)
    gone = weakref.ref(client)
    holder = [client]
    del client
    if thread == "own":
        call_in_loop(kit.loop, holder.clear)
    else:
        in_other_thread(holder.clear)
    settle(kit.loop)
    assert is_collected(gone) == (state == "idle")
    kept = gone()
    if kept is not None:
        assert is_in(kept, state)
        kept.close()
        del kept
        eventually(lambda: is_collected(gone))
    assert heard.events.count("up") == heard.events.count("down")


def test_a_client_dropped_in_the_iteration_in_which_its_connection_comes_up_does_no_harm(kit):
    """muduo's client, destroyed when it has just connected, leaves a callback into freed memory (issue 194)."""
    listening = kit.listener()
    client, heard = kit.client(address_of(listening))
    holder = [client]
    gone = weakref.ref(client)

    def on_connection(connection: TcpConnection) -> None:
        heard.on_connection(connection)
        holder.clear()
        gc.collect()

    client.connection_callback = on_connection
    client.connect()
    del client
    listening.accept()[0].close()
    heard.wait_for("up", "down")
    eventually(lambda: is_collected(gone))


def test_a_client_stopped_while_it_connects_and_dropped_at_once_is_not_called_back(kit):
    """muduo's connector may still hand a socket to the client that was stopped and destroyed meanwhile (issue 268)."""
    listening = kit.listener()
    for door in DOORS:
        client, heard = kit.client(address_of(listening))
        gone = weakref.ref(client)

        def stop(client: TcpClient = client, door: str = door) -> None:
            client.connect()
            kit.loop.queue_in_loop(getattr(client, door))  # by then the kernel has most likely connected

        call_in_loop(kit.loop, stop)
        del client, stop
        eventually(lambda gone=gone: is_collected(gone))
        settle(kit.loop)
        assert heard.events == []


@pytest.mark.parametrize("thread", ["own", "other"])
def test_a_client_dropped_while_its_retry_timer_is_pending_is_kept_and_one_that_was_stopped_is_not(kit, thread):
    """muduo's timer calls a connector that may be gone (issue 488); stop does not cancel it."""
    for is_stopped in (False, True):
        client, heard = kit.client(nobody(), retry=True, retry_delay_s=0.02, max_retry_delay_s=0.02)
        client.connect()
        eventually(lambda heard=heard: heard.errors)
        gone = weakref.ref(client)
        if is_stopped:
            client.stop()
        holder = [client]
        del client
        if thread == "own":
            call_in_loop(kit.loop, holder.clear)
        else:
            in_other_thread(holder.clear)
        if is_stopped:
            eventually(lambda gone=gone: is_collected(gone))
            failures = len(heard.errors)
            time.sleep(0.03)  # longer than the timer
            settle(kit.loop)
            assert len(heard.errors) == failures
        else:
            failures = len(heard.errors)
            eventually(lambda heard=heard, failures=failures: len(heard.errors) > failures + 1)
            eventually(lambda gone=gone: gone()).close()


# --- the end of the loop ---


@pytest.mark.parametrize("state", STATES)
def test_closing_the_loop_ends_a_client_in_any_state(state):
    with contextlib.ExitStack() as stack:
        thread = EventLoopThread(name="loop")
        loop = thread.start_loop()
        client, heard = Kit(loop, stack).client_for(state)
        enter(client, state)
        events = heard.events[:]
        assert thread.stop(PATIENCE_S)
        assert heard.events == events + (["down"] if state in ("up", "going down") else [])
        for door in (client.disconnect, client.stop, client.close):
            door()
        with pytest.raises(RuntimeError, match="closed"):
            client.connect()
        gone = weakref.ref(client)
        del client, door
        eventually(lambda: is_collected(gone))


def test_doors_used_while_the_loop_is_being_closed_are_harmless(own_kit, caplog):
    listening = own_kit.listener()
    client, heard = own_kit.client(address_of(listening), retry=True)

    def on_connection(connection: TcpConnection) -> None:
        heard.on_connection(connection)
        if not connection.connected:
            for door in DOORS:
                getattr(client, door)()

    client.connection_callback = on_connection
    client.connect()
    late, heard_late = own_kit.client(address_of(listening))
    run_until(own_kit.loop, lambda: client.connection)
    own_kit.loop.queue_in_loop(late.connect)
    own_kit.loop.close()
    assert heard.events == ["up", "down"]
    assert heard_late.events == []
    assert caplog.records == []


def test_a_client_of_a_loop_that_never_runs_is_ended_with_it():
    with contextlib.ExitStack() as stack, EventLoop() as loop:
        client, heard = Kit(loop, stack).client(nobody(), retry=True)
        in_other_thread(client.connect)
        client.connect()
    assert heard.events == []


# --- many threads ---


class Stress:
    """Threads that use each other's clients at random until the time is up, and enough of them have connected."""

    def __init__(self, targets: list[Any], loops: list[EventLoop], resolver: FakeResolver) -> None:
        self.made: list[weakref.ref[TcpClient]] = []
        self.ups = 0
        self.errors: list[BaseException] = []
        self._targets = targets
        self._loops = loops
        self._resolver = resolver
        self._clients: dict[int, TcpClient] = {}
        self._ends = time.monotonic() + 1.5

    def run(self, seed: int) -> None:
        try:
            self._use(random.Random(seed), seed)
        except BaseException as e:
            self.errors.append(e)

    def end(self) -> None:
        self._clients.clear()
        for one in self.made:
            close_if_there(one)

    def _make(self, chance: random.Random) -> TcpClient:
        client = TcpClient(
            chance.choice(self._loops),
            chance.choice(self._targets),
            "stress",
            retry=chance.random() < 0.5,
            retry_delay_s=0.001,
            max_retry_delay_s=0.004,
            jitter=True,
            connect_timeout_s=0.1,
            resolver=self._resolver,
        )
        client.connection_callback = self._on_connection
        client.connect_failed_callback = lambda client, error: None
        self.made.append(weakref.ref(client))
        return client

    def _use(self, chance: random.Random, seed: int) -> None:
        self._clients[seed] = self._make(chance)
        while self._goes_on():
            client = chance.choice(list(self._clients.values()))
            door = chance.choice(["connect"] * 8 + ["disconnect", "stop", "close", "send", "leave", "drop"])
            with contextlib.suppress(RuntimeError):  # closed: the client, or its loop
                if door in ("send", "leave"):
                    connection = client.connection
                    if connection is not None:
                        connection.send(door.encode())
                elif door != "drop":
                    getattr(client, door)()
            if door in ("close", "drop"):
                self._clients[seed] = self._make(chance)
            if chance.random() < 0.125:
                time.sleep(0.002)  # so that the loops get something done

    def _goes_on(self) -> bool:
        now = time.monotonic()
        return now < self._ends or (self.ups <= ENOUGH_UPS and now < self._ends + PATIENCE_S)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.ups += 1
            connection.send(b"hello")


@pytest.mark.usefixtures("switch_often")
def test_any_door_at_any_time_from_any_thread_leaves_nothing_behind(serve, caplog):
    """Eight threads, clients on two loops, of which one ends half-way; servers that answer, refuse and leave."""

    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.retrieve_all_as_bytes().startswith(b"leave"):
            connection.force_close()
        else:
            connection.send(b"x")

    server = serve(2, message_callback=answer)
    before = len(open_descriptors())
    address, refusing = InetAddress.loopback(server.port), nobody()
    with contextlib.ExitStack() as stack:
        resolver = FakeResolver(refusing, address)
        stack.callback(resolver.end)
        brief = EventLoopThread(name="brief")
        loops = [brief.start_loop(), stack.enter_context(EventLoopThread(name="long"))]
        stack.callback(brief.stop)
        stress = Stress([address, address, refusing, ("both", 80)], loops, resolver)
        users = [threading.Thread(target=stress.run, args=(seed,)) for seed in range(8)]
        for user in users:
            user.start()
        users[0].join(0.75)  # the loop is to end while they are at it
        assert brief.stop(PATIENCE_S)
        for user in users:
            user.join(2 * PATIENCE_S)
            assert not user.is_alive()
        assert stress.errors == []
        assert "exception" not in caplog.text
        assert stress.ups > ENOUGH_UPS
        stress.end()
        eventually(lambda: call_in_loop(loops[1], lambda: loops[1].timer_count) == 0)
        eventually(lambda: (gc.collect(), not any(one() for one in stress.made))[1])
    eventually(lambda: server.server.connection_count == 0)
    eventually(lambda: len(open_descriptors()) <= before)


# --- what it refuses, and how it looks ---


def test_what_makes_no_sense_is_refused(loop):
    with pytest.raises(TypeError, match="EventLoop"):
        TcpClient(None, nobody(), "c")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="required"):
        TcpClient(loop, "127.0.0.1:80", "c")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="required"):
        TcpClient(loop, (), "c", ssl_context=ssl.create_default_context())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retry_delay_s"):
        TcpClient(loop, nobody(), "c", retry_delay_s=0)
    with pytest.raises(ValueError, match="server_hostname"):
        TcpClient(loop, UnixAddress("/run/x"), "c", ssl_context=ssl.create_default_context())


def test_repr_tells_target_and_state(kit):
    client, heard = kit.client(nobody())
    assert repr(client) == f"<TcpClient 'client' to {client.target} idle>"
    listening = kit.listener()
    client, heard = kit.client(("127.0.0.1", listening.getsockname()[1]))
    client.connect()
    heard.wait_for("up")
    assert repr(client) == f"<TcpClient 'client' to 127.0.0.1:{listening.getsockname()[1]} connected>"
    client.disconnect()
    settle(kit.loop)
    assert repr(client).endswith(" disconnecting>")
    client.close()
    assert repr(client).endswith(" closed>")


def test_a_connection_on_which_nothing_happens_is_closed_and_made_anew(loop):
    errors: list[Exception | None] = []

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            errors.append(connection.error)
            loop.quit()

    with contextlib.ExitStack() as stack:
        where = listener(stack)
        client = TcpClient(loop, address_of(where), "idle", retry=True, retry_delay_s=SOON_S)
        client.idle_timeouts = IdleTimeouts(read_s=0.05)
        client.connection_callback = on_connection
        client.connect()
        for _ in range(2):
            loop.run()
            stack.enter_context(where.accept()[0])
        client.close()
        assert [type(error) for error in errors[:2]] == [TimeoutError, TimeoutError]
