"""TcpServer: start, serve, stop; the table of connections; the threads."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import weakref

import pytest

from conftest import (
    IS_FREE_THREADED,
    PATIENCE_S,
    ServerThread,
    call_in_loop,
    eventually,
    own_sockets,
    receive_all,
    receive_exactly,
    running_threads,
    waiting_newcomers,
)
from pymuduo import Buffer, EventLoop, EventLoopThread, InetAddress, TcpConnection, TcpServer, UnixAddress


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


# --- making and starting ---


def test_port_0_gives_the_real_address_back_before_start(loop):
    server = TcpServer(loop, InetAddress.loopback(0), "s")
    assert server.address.port > 0
    assert server.address.ip == "127.0.0.1"
    server.stop(0)
    assert server.join(PATIENCE_S)


def test_a_port_in_use_raises_os_error_naming_the_address(loop):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = InetAddress.loopback(taken.getsockname()[1])
        with pytest.raises(OSError, match=f"127.0.0.1:{address.port}.*in use"):
            TcpServer(loop, address, "s")


def test_an_address_of_another_machine_raises_os_error_naming_it(loop):
    with pytest.raises(OSError, match=r"192\.0\.2\.1:0"):
        TcpServer(loop, InetAddress("192.0.2.1", 0), "s")


def test_start_counts_once_however_often_and_from_wherever_it_is_called(serve):
    server = serve(2, message_callback=echo)
    threads = running_threads()
    starters = [threading.Thread(target=server.server.start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    call_in_loop(server.loop, server.server.start)
    assert running_threads() == threads
    with server.connect() as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


def test_two_servers_share_a_port_with_reuse_port(loop):
    first = TcpServer(loop, InetAddress.loopback(0), "first", reuse_port=True)
    second = TcpServer(loop, first.address, "second", reuse_port=True)
    first.start()
    second.start()
    assert first.address == second.address


def test_two_servers_do_not_share_a_port_without_it(loop):
    first = TcpServer(loop, InetAddress.loopback(0), "first")
    first.start()
    with pytest.raises(OSError, match="in use"):
        TcpServer(loop, first.address, "second")


@pytest.mark.parametrize("wrong", [-1, -100])
def test_a_negative_thread_num_is_refused(serve, wrong):
    server = serve()
    with pytest.raises(ValueError, match=str(wrong)):
        server.server.thread_num = wrong


def test_thread_num_is_fixed_once_started(serve):
    server = serve(1)
    with pytest.raises(RuntimeError, match="started"):
        server.server.thread_num = 2


def test_thread_init_callback_runs_once_in_each_io_thread():
    seen: list[tuple[str, EventLoop | None]] = []

    def init(loop: EventLoop) -> None:
        assert EventLoop.current() is loop
        seen.append((threading.current_thread().name, loop))

    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "srv")
        server.thread_num = 3
        server.thread_init_callback = init
        server.start()
        assert [name for name, _ in seen] == ["srv0", "srv1", "srv2"]
        assert [one for _, one in seen] == server.thread_pool.loops()


def test_thread_init_callback_gets_the_base_loop_when_there_are_no_threads(loop):
    seen: list[EventLoop] = []
    server = TcpServer(loop, InetAddress.loopback(0), "srv")
    server.thread_init_callback = seen.append
    server.start()
    assert seen == [loop]


def test_ipv6_is_served(loop):
    server = TcpServer(loop, InetAddress.loopback(0, ipv6=True), "six")
    server.message_callback = echo
    server.start()
    names: list[str] = []
    server.connection_callback = lambda c: names.append(c.name)

    def client() -> None:
        with socket.create_connection(("::1", server.address.port), timeout=PATIENCE_S) as sock:
            sock.sendall(b"x")
            sock.recv(1)
        loop.quit()

    thread = threading.Thread(target=client)
    thread.start()
    loop.run()
    thread.join()
    assert names[0] == f"six-[::1]:{server.address.port}#1"


def test_a_server_on_every_interface_tells_each_connection_its_real_local_address(loop):
    server = TcpServer(loop, InetAddress.any(0), "any")
    addresses: list[InetAddress | UnixAddress] = []
    server.connection_callback = lambda c: (addresses.append(c.local_address), loop.quit())
    server.start()
    with socket.create_connection(("127.0.0.1", server.address.port)):
        loop.run()
    assert addresses[0] == InetAddress.loopback(server.address.port)


def test_without_callbacks_it_accepts_and_discards(serve):
    """The article's server calls an unset callback and dies."""
    server = serve(1)
    with server.connect() as client:
        client.sendall(b"into the void" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


def test_callbacks_set_to_none_are_not_called(serve):
    server = serve(1, connection_callback=None, message_callback=None)
    with server.connect() as client:
        client.sendall(b"into the void")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


@pytest.mark.parametrize("no_delay", [True, False])
def test_no_delay_is_inherited_by_connections(serve, no_delay):
    server = serve(0, no_delay=no_delay)
    with server.connect():
        eventually(lambda: server.server.connections)
        server_ends = [
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for sock in own_sockets()
            if sock.getsockname()[1] == server.port and _has_peer(sock)
        ]
        assert [bool(value) for value in server_ends] == [no_delay]


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


# --- connections ---


def test_connections_are_dealt_to_the_loops_in_turn(serve):
    server = serve(3)
    clients = [server.connect() for _ in range(9)]
    eventually(lambda: server.server.connection_count == 9)
    loops = server.server.thread_pool.loops()
    assert [c.loop for c in server.server.connections] == loops * 3
    for client in clients:
        client.close()


def test_names_are_numbered_from_one(serve):
    server = serve(2)
    clients = [server.connect() for _ in range(3)]
    eventually(lambda: server.server.connection_count == 3)
    assert [c.name for c in server.server.connections] == [f"test-127.0.0.1:{server.port}#{i}" for i in (1, 2, 3)]
    for client in clients:
        client.close()
    eventually(lambda: server.server.connection_count == 0)


def test_callbacks_run_in_the_connections_own_thread(serve):
    threads: set[tuple[str, bool]] = set()

    def on_event(connection: TcpConnection, *rest: object) -> None:
        threads.add((threading.current_thread().name, connection.loop.is_in_loop_thread()))
        if rest:
            echo(connection, *rest)  # type: ignore[arg-type]

    server = serve(
        2,
        connection_callback=on_event,
        message_callback=on_event,
        write_complete_callback=on_event,
        close_callback=on_event,
    )
    for _ in range(4):
        with server.connect() as client:
            client.sendall(b"x")
            receive_exactly(client, 1)
    eventually(lambda: server.server.connection_count == 0)
    assert threads == {("test0", True), ("test1", True)}


@pytest.mark.skipif(IS_FREE_THREADED, reason="without a GIL the interpreter may free it later")
def test_a_closed_connection_is_freed_without_the_garbage_collector(serve):
    references: list[weakref.ref[TcpConnection]] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            references.append(weakref.ref(connection))

    server = serve(1, connection_callback=on_connection, message_callback=echo)
    gc.disable()
    try:
        with server.connect() as client:
            client.sendall(b"x")
            receive_exactly(client, 1)
        eventually(lambda: references and references[0]() is None)
    finally:
        gc.enable()


def test_a_user_set_close_callback_does_not_leak_the_connection(serve):
    """In muduo a program that sets the close callback takes the server's own away (its issue 480)."""
    server = serve(1, close_callback=lambda c: None)
    server.connect().close()
    eventually(lambda: server.server.connection_count == 0)


# --- stopping ---


def test_stop_refuses_newcomers_and_ends_the_threads(serve):
    server = serve(2)
    server.connect().close()
    server.server.stop()
    assert server.server.join(PATIENCE_S)
    assert server.server.is_stopped
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("test")])


def test_stop_drains_what_was_sent_before_it_closes(serve):
    payload = bytes(16 << 20)
    server = serve(1, connection_callback=lambda c: c.send(payload) if c.connected else None)
    with server.connect() as client:
        eventually(lambda: any(connection.messages_sent for connection in server.server.connections))
        server.server.stop(PATIENCE_S)
        assert len(receive_all(client)) == len(payload)
    assert server.server.join(PATIENCE_S)


def test_stop_closes_by_force_a_peer_that_does_not_finish_in_time(serve):
    server = serve(1)
    with server.connect() as client:
        eventually(lambda: server.server.connections)
        server.server.stop(0.05)
        assert server.server.join(PATIENCE_S)
        assert receive_all(client) == b""


def test_a_second_stop_does_not_lengthen_the_first(serve):
    server = serve(1)
    with server.connect() as client:
        eventually(lambda: server.server.connections)
        server.server.stop(0.05)
        server.server.stop(10_000)
        assert server.server.join(PATIENCE_S)
        assert receive_all(client) == b""


def test_stop_and_join_of_a_server_whose_loop_is_closed_return():
    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "never started")
    server.stop()
    assert server.join(PATIENCE_S)
    thread = threading.Thread(target=server.stop)
    thread.start()
    thread.join(PATIENCE_S)
    assert server.is_stopped


def test_the_log_tells_of_the_end_of_a_server_that_was_started_and_of_no_other(caplog):
    caplog.set_level(logging.INFO, "pymuduo.tcp_server")
    with EventLoop() as loop:
        started = TcpServer(loop, InetAddress.loopback(0), "started")
        started.start()
        TcpServer(loop, InetAddress.loopback(0), "new")
    ends = [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()]
    assert ends == [f"started on {started.address} stopped"]


def test_a_server_that_is_dropped_without_a_start_leaves_nothing_in_its_loop(loop):
    def hooks() -> int:
        gc.collect()
        loop.queue_in_loop(loop.quit)
        loop.run()
        return sum("TcpServer" in getattr(o, "__qualname__", "") for o in gc.get_objects() if callable(o))

    TcpServer(loop, InetAddress.loopback(0), "dropped")
    before = hooks()
    for _ in range(10):
        TcpServer(loop, InetAddress.loopback(0), "dropped")
    assert hooks() == before


def test_close_hears_of_the_ends_that_came_after_run(caplog):
    told = threading.Event()
    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "s")
        server.thread_num = 1
        server.connection_callback = lambda c: loop.quit() if c.connected else None
        server.close_callback = lambda c: c.loop.queue_in_loop(told.set)
        server.start()
        with socket.create_connection(("127.0.0.1", server.address.port)):
            loop.run()
        assert told.wait(PATIENCE_S)  # the base loop, which does not run any more, has been told as well
    assert server.connection_count == 0
    assert "still busy" not in caplog.text  # which it says after waiting in vain


def test_a_start_queued_when_the_loop_is_closed_leaves_nothing_running():
    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "late")
        server.thread_num = 2
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
    assert server.is_stopped
    assert not [t for t in threading.enumerate() if t.name.startswith("late")]


def test_a_start_that_fails_raises_and_leaves_nothing_running():
    def fail(loop: EventLoop) -> None:
        raise ZeroDivisionError

    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "failing")
        server.thread_num = 2
        server.thread_init_callback = fail
        with pytest.raises(ZeroDivisionError):
            server.start()
        assert server.join(PATIENCE_S)
        with pytest.raises(RuntimeError, match="stopped"):
            server.start()


@pytest.mark.provokes_errors("ended by an exception")
def test_an_exit_in_every_callback_of_a_worker_ends_its_loop_and_not_the_server(serve):
    def leave(connection: TcpConnection, *rest: object) -> None:
        if rest or not connection.connected:
            raise SystemExit

    server = serve(2, connection_callback=leave, message_callback=leave)
    with server.connect() as first, server.connect() as second:
        eventually(lambda: server.server.connection_count == 2)
        dying = server.server.connections[0].loop
        first.sendall(b"x")
        assert receive_all(first) == b""
        eventually(lambda: dying.is_closed)
        assert second.send(b"") == 0


def test_a_second_stop_shortens_the_first(serve):
    server = serve(1)
    with server.connect():
        eventually(lambda: server.server.connections)
        server.server.stop(10_000)
        assert not server.server.join(0.01)
        server.server.stop(0)
        assert server.server.join(PATIENCE_S)


def test_stop_while_clients_are_sending_ends_them_all(serve):
    server = serve(2, message_callback=echo)
    ended = []

    def client() -> None:
        with server.connect() as sock:
            try:
                while True:
                    sock.sendall(b"x" * 1000)
                    if not sock.recv(65536):
                        break
            except (ConnectionError, BrokenPipeError):
                pass
        ended.append(1)

    clients = [threading.Thread(target=client) for _ in range(20)]
    for thread in clients:
        thread.start()
    eventually(lambda: server.server.connection_count == 20)
    eventually(lambda: sum(c.messages_received for c in server.server.connections) > 200)
    server.server.stop(0)
    assert server.server.join(PATIENCE_S)
    for thread in clients:
        thread.join(PATIENCE_S)
    assert len(ended) == 20
    assert server.server.connection_count == 0


@pytest.mark.parametrize("threads", [0, 2])
def test_a_message_callback_may_stop_the_server(serve, threads):
    holder: list[ServerThread] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)
        holder[0].server.stop(PATIENCE_S)

    holder.append(serve(threads, message_callback=on_message))
    with holder[0].connect() as client:
        client.sendall(b"stop")
        assert receive_all(client) == b"stop"
    assert holder[0].server.join(PATIENCE_S)


def test_join_in_one_of_its_own_threads_raises_instead_of_hanging(serve):
    errors: list[str] = []
    holder: list[ServerThread] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        try:
            holder[0].server.join()
        except RuntimeError as e:
            errors.append(str(e))
        connection.shutdown()

    for threads in (0, 1):
        holder[:] = [serve(threads, message_callback=on_message)]
        with holder[0].connect() as client:
            client.sendall(b"x")
            receive_all(client)
    assert len(errors) == 2


def test_stop_twice_stop_before_start_and_start_after_stop(loop):
    server = TcpServer(loop, InetAddress.loopback(0), "s")
    server.stop(0)
    server.stop(0)
    assert server.join(PATIENCE_S)
    assert server.join(PATIENCE_S)
    with pytest.raises(RuntimeError, match="stopped"):
        server.start()


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_stop_refuses_a_time_that_is_none(serve, wrong):
    with pytest.raises(ValueError, match="drain_s"):
        serve().server.stop(wrong)


def test_stop_in_the_base_loops_thread_when_the_loop_is_not_running():
    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.loopback(0), "s")
        server.thread_num = 2
        server.start()
        with socket.create_connection(("127.0.0.1", server.address.port)) as client:
            server.connection_callback = lambda c: loop.quit()
            loop.run()
            server.stop(0)
            assert server.join(PATIENCE_S)
            assert client.recv(1) == b""


def test_closing_the_base_loop_stops_its_servers():
    with EventLoop() as loop:
        servers = []
        for _ in range(2):
            server = TcpServer(loop, InetAddress.loopback(0), "s")
            server.thread_num = 2
            server.start()
            servers.append(server)
        clients = [socket.create_connection(("127.0.0.1", s.address.port)) for s in servers for _ in range(3)]
        loop.run_after(0.01, loop.quit)
        loop.run()
    assert all(server.is_stopped for server in servers)
    for client in clients:
        client.close()


def test_a_server_as_context_manager_is_stopped_at_the_end():
    with EventLoop() as loop:
        with TcpServer(loop, InetAddress.loopback(0), "s") as server:
            server.thread_num = 1
            server.start()
        assert server.is_stopped


def test_dropping_a_server_and_its_loop_from_any_thread_is_safe():
    """A muduo program that destroys a server with live connections may crash."""
    client_box: list[socket.socket] = []

    def life() -> None:
        loop = EventLoop()
        server = TcpServer(loop, InetAddress.loopback(0), "s")
        server.thread_num = 1
        server.message_callback = echo
        up = threading.Event()
        server.connection_callback = lambda c: up.set()
        server.start()
        client_box.append(socket.create_connection(("127.0.0.1", server.address.port)))
        while not up.is_set():
            loop.run_after(0.001, loop.quit)
            loop.run()
        del server
        gc.collect()
        loop.close()

    thread = threading.Thread(target=life)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert client_box[0].recv(1) == b""
    client_box[0].close()


def test_an_io_loop_that_ends_by_itself_does_not_take_the_server_with_it(serve):
    server = serve(2, message_callback=echo)
    with server.connect() as first, server.connect() as second:
        eventually(lambda: server.server.connection_count == 2)
        dying, _ = server.server.thread_pool.loops()
        dying.quit()
        assert receive_all(first) == b""  # closed with its loop
        second.sendall(b"x")
        assert receive_exactly(second, 1) == b"x"
        eventually(lambda: dying.is_closed)  # until then it may be dealt one that ends with it
        eventually(lambda: server.server.connection_count == 1)
        for _ in range(4):  # newcomers are dealt to the loop that is left
            with server.connect() as another:
                another.sendall(b"y")
                assert receive_exactly(another, 1) == b"y"


def test_repr_tells_state_and_address(serve):
    server = serve(0)
    assert repr(server.server) == f"<TcpServer 'test' 127.0.0.1:{server.port} started, 0 connections>"


def test_wrong_types_raise_type_error(loop):
    with pytest.raises(TypeError):
        TcpServer(loop, "127.0.0.1:80", "s")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        TcpServer(None, InetAddress.loopback(0), "s")  # type: ignore[arg-type]


def test_start_in_another_thread_than_the_base_loops(serve):
    with EventLoopThread(name="base2") as base:
        server = TcpServer(base, InetAddress.loopback(0), "far")
        server.thread_num = 1
        server.message_callback = echo
        server.start()
        call_in_loop(base, lambda: None)
        with socket.create_connection(("127.0.0.1", server.address.port), timeout=PATIENCE_S) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
        server.stop()
        assert server.join(PATIENCE_S)


@pytest.mark.usefixtures("switch_often")
def test_small_switch_interval_many_short_connections(serve):
    """Threads that interleave at every opportunity lose no reply."""
    server = serve(2, message_callback=echo)
    failures: list[BaseException] = []

    def client() -> None:
        try:
            for i in range(25):
                with server.connect() as sock:
                    message = b"%d" % i
                    sock.sendall(message)
                    assert receive_exactly(sock, len(message)) == message
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    eventually(lambda: server.server.connection_count == 0)


# --- stopping with grace ---


def refuses(server: ServerThread) -> bool:
    """Whether newcomers find nobody who listens."""
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # just between the last accept and close
    return False


def test_with_grace_requests_under_way_are_answered(serve):
    server = serve(1, message_callback=lambda c, b, t: c.send(b.retrieve_all_as_bytes()[::-1]))
    with server.connect() as client:
        client.sendall(b"first")
        assert receive_exactly(client, 5) == b"tsrif"
        server.server.stop(grace_s=PATIENCE_S)
        assert server.server.is_stopping
        eventually(lambda: refuses(server))
        client.sendall(b"second")
        assert receive_exactly(client, 6) == b"dnoces"
        assert not server.server.is_stopped
    assert server.server.join(PATIENCE_S), "the last peer has left"


def test_when_grace_is_over_connections_are_shut_down(serve):
    server = serve(1)
    with server.connect() as client:
        eventually(lambda: server.server.connections)
        server.server.stop(drain_s=PATIENCE_S, grace_s=0.01)
        assert client.recv(1) == b""
    assert server.server.join(PATIENCE_S)


def test_a_stop_in_the_grace_of_another_shortens_it(serve):
    server = serve(1)
    with server.connect() as client:
        eventually(lambda: server.server.connections)
        server.server.stop(grace_s=3600)
        server.server.stop(0)
        assert client.recv(1) == b""
        assert server.server.join(PATIENCE_S)


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_stop_refuses_a_grace_that_is_none(serve, wrong):
    with pytest.raises(ValueError, match="grace_s"):
        serve().server.stop(grace_s=wrong)


@pytest.mark.parametrize("acceptors", ["one", "per-loop"])
def test_who_waits_in_the_kernels_queue_at_a_stop_is_served_not_reset(serve, acceptors):
    server = serve(2, acceptors=acceptors, message_callback=lambda c, b, t: c.send(b))
    held = threading.Event()
    let_go = threading.Event()

    def hold() -> None:
        held.set()
        let_go.wait(PATIENCE_S)

    loops = [server.loop] if acceptors == "one" else server.server.thread_pool.loops()
    for loop in loops:
        held.clear()
        loop.queue_in_loop(hold)
        assert held.wait(PATIENCE_S)
    clients = [server.connect() for _ in range(10)]
    eventually(lambda: waiting_newcomers(server.port) == 10)
    server.server.stop(grace_s=PATIENCE_S)
    let_go.set()
    for client in clients:
        with client:
            client.sendall(b"served?")
            assert receive_exactly(client, 7) == b"served?"
    assert server.server.join(PATIENCE_S)


# --- an acceptor in every loop ---


def test_per_loop_acceptors_serve_on_the_loop_that_accepted(serve):
    seen: list[tuple[str, str]] = []

    def on_message(connection, buffer, receive_time):
        seen.append((connection.loop.name, threading.current_thread().name))
        connection.send(buffer)

    server = serve(3, acceptors="per-loop", message_callback=on_message)
    for _ in range(60):
        with server.connect() as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
    assert all(loop == thread for loop, thread in seen)
    assert {loop for loop, _ in seen} == {"test0", "test1", "test2"}, "the kernel deals out by hash: 60 peers meet all"
    eventually(lambda: server.server.connection_count == 0)
    assert server.server.stats().accepted == 60


def test_per_loop_acceptors_listen_when_start_returns_though_their_loops_are_busy(loop):
    let_go = threading.Event()
    server = TcpServer(loop, InetAddress.loopback(0), "test", acceptors="per-loop")
    server.thread_num = 2
    server.thread_init_callback = lambda worker: worker.queue_in_loop(let_go.wait, PATIENCE_S)
    server.start()
    try:
        socket.create_connection(("127.0.0.1", server.address.port), timeout=PATIENCE_S).close()
    finally:
        let_go.set()


def test_per_loop_acceptors_number_every_connection_once(serve):
    server = serve(3, acceptors="per-loop")
    clients = [server.connect() for _ in range(30)]
    eventually(lambda: server.server.connection_count == 30)
    assert sorted(connection.number for connection in server.server.connections) == list(range(1, 31))
    for client in clients:
        client.close()


def test_per_loop_acceptors_without_threads_are_one(serve):
    server = serve(0, acceptors="per-loop", message_callback=lambda c, b, t: c.send(b))
    with server.connect() as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


def test_per_loop_acceptors_stop_while_peers_come(serve):
    server = serve(3, acceptors="per-loop", message_callback=lambda c, b, t: c.send(b))
    stopped = threading.Event()
    answered = 0

    def knock() -> None:
        nonlocal answered
        while not stopped.is_set():
            try:
                with server.connect() as client:
                    client.sendall(b"x")
                    if client.recv(1):
                        answered += 1
            except ConnectionError:
                return

    thread = threading.Thread(target=knock)
    thread.start()
    eventually(lambda: answered > 20)
    server.server.stop(1.0)
    assert server.server.join(PATIENCE_S)
    stopped.set()
    thread.join(PATIENCE_S)
    assert server.server.connection_count == 0


def test_unknown_acceptors_are_refused(loop):
    with pytest.raises(ValueError, match="acceptors"):
        TcpServer(loop, InetAddress.loopback(0), "test", acceptors="many")


# --- counters ---


def test_stats_count_what_has_been_and_what_is(serve):
    server = serve(2, message_callback=lambda c, b, t: c.send(b))
    for _ in range(3):
        with server.connect() as client:
            client.sendall(b"12345")
            receive_exactly(client, 5)
    eventually(lambda: server.server.connection_count == 0)
    with server.connect() as client:
        client.sendall(b"1234567")
        receive_exactly(client, 7)
        eventually(lambda: server.server.stats().bytes_sent == 22)
        stats = server.server.stats()
    assert (stats.connections, stats.accepted, stats.refused, stats.failed) == (1, 4, 0, 0)
    assert (stats.bytes_received, stats.messages_received, stats.messages_sent) == (22, 4, 4)
