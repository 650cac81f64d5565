"""Every system call that the library makes may fail, at any moment: nothing is lost, doubled or leaked by it.

Fixed scenarios (``fault_scenarios.py``) are played once for every call that they make and every error, with that one
call failing, up to the one that no play gets to. A fault that the kernel may produce on a healthy connection
(interrupted, would block, cut short, short of memory for now) must not be noticed by the peers at all, nor by the
library's own clients, which have one connection from beginning to end. One that ends a connection may end it: the peer
then has the beginning of what it should have, and nothing else; a client that tries again gets all of it in the end. A
datagram comes back once, and whole, or not at all. In any case the loops live, nobody's callback fails, and no
descriptor is left. What leaves a loop no way to go on leaves ``run`` as an OSError, and it can be run again.

Which calls can't be made to fail here is said in ``native/faults.c``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from certificates import write_files
from conftest import PATIENCE_S, eventually, imported
from fault_scenarios import LITTLE, SCENARIOS, FaultyServer, Outcome, exchange, fetched, talk
from pymuduo import COMPILED

HERE = Path(__file__).parent
SHORT = 0  # no error: the call does one byte of its work
WAIT = "poll" if os.environ.get("PYMUDUO_POLLER") == "poll" else "epoll_wait"
NO_EPOLL = WAIT == "poll"
TRIES = 3  # plays in a row that do not get as far as a call before it is given up
PLAYS = 3  # at random; more if the fault never struck
PAUSING = ("accept", "descriptor")  # after such a fault an acceptor pauses: one play at random

# What may happen to a call without anybody noticing, and what may end a connection or be its end.
HARMLESS = {
    "read": (errno.EINTR, errno.EAGAIN, SHORT),
    "readv": (errno.EINTR, errno.EAGAIN, SHORT),
    "write": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, SHORT),
    "writev": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, SHORT),
    "sendfile": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, SHORT),
    "counter_read": (errno.EINTR, errno.EAGAIN),
    "counter_write": (errno.EINTR, errno.EAGAIN),
    "accept": (errno.EINTR, errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO, errno.ENOBUFS, errno.ENOMEM),
    "connect": (
        *(errno.EINTR, errno.EAGAIN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.ETIMEDOUT),
        *(errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL),
    ),
    "socket": (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM),
    "setsockopt": (errno.ENOBUFS, errno.ENOMEM),
    "unread": (errno.ENOMEM,),
    "shutdown": (errno.ENOBUFS,),
    "getpeername": (errno.ENOBUFS, errno.ENOTCONN),
    "pread": (errno.EINTR, SHORT),
    "recvfrom": (errno.EINTR, errno.EAGAIN, errno.ECONNREFUSED, errno.ENOBUFS, errno.ENOMEM),
    "sendto": (errno.EINTR, errno.EAGAIN),
    "recvmsg": (errno.EAGAIN, errno.ENOMEM),
    WAIT: (errno.EINTR,),
}
HARMFUL = {
    "read": (errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOMEM, errno.ENOBUFS),
    "readv": (errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOMEM, errno.ENOBUFS),
    "write": (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT),
    "writev": (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT),
    "sendfile": (errno.ECONNRESET, errno.EPIPE, errno.EIO),
    "accept": (errno.EMFILE, errno.ENFILE),
    "getsockopt": (errno.ENOBUFS,),
    "open": (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "dup": (errno.EMFILE,),
    "pread": (errno.EIO, errno.ENOMEM),
    "sendto": (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPERM, errno.ENOBUFS, errno.ENOMEM),
    **({} if NO_EPOLL else {"epoll_ctl": (errno.ENOMEM, errno.ENOSPC)}),
}
# The plain build asks for it before many a call, where the compiled one only wants to know an address.
(HARMLESS if COMPILED else HARMFUL)["getsockname"] = (errno.ENOBUFS,)
# Clients connect again after such a fault, although it is harmless.
CONNECTING = ("socket", "setsockopt", "connect")
# Which scenarios make such calls, in either build.
STREAMS = tuple(name for name in SCENARIOS if name != "datagrams")
WHERE = {
    **dict.fromkeys(("read", "write", "accept", "epoll_ctl"), STREAMS),
    "getsockname": tuple(name for name in STREAMS if name != "file"),  # whose peers on a Unix socket have no names
    WAIT: tuple(SCENARIOS),
    **dict.fromkeys(("readv", "writev"), ("frames",)),
    **dict.fromkeys(("sendfile", "unread", "open"), ("file",)),
    **dict.fromkeys(("pread", "dup"), ("tls-file",)),
    **dict.fromkeys(("counter_read", "counter_write"), ("talk", "client")),
    **dict.fromkeys((*CONNECTING, "getpeername"), ("client", "tls-client")),
    **dict.fromkeys(("recvfrom", "sendto", "recvmsg"), ("datagrams",)),
    "getsockopt": ("client", "tls-client", "datagrams"),
    "shutdown": ("frames", "tls", "client"),
}
KINDS = [
    (kind, number, is_harmless)
    for is_harmless, table in ((True, HARMLESS), (False, HARMFUL))
    for kind, numbers in table.items()
    for number in numbers
]
# What makes a descriptor fails as one kind at random: an acceptor without a place in the table has no reserve either.
TABLE_FULL = [("descriptor", number, False) for number in (errno.EMFILE, errno.ENFILE)]
# What a new server and its loops may meet.
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
OF_NEW = {
    **dict.fromkeys(("eventfd", "timerfd_create"), NO_DESCRIPTOR),
    "socket": (*NO_DESCRIPTOR, errno.ENOBUFS),
    **({} if NO_EPOLL else {"epoll_create": NO_DESCRIPTOR, "epoll_ctl": (errno.ENOMEM, errno.ENOSPC)}),
    **dict.fromkeys((WAIT, "timerfd_settime"), (errno.ENOMEM,)),
    "setsockopt": (errno.ENOBUFS, errno.ENOMEM),
    "bind": (errno.EADDRINUSE, errno.EACCES, errno.ENOMEM),
    "listen": (errno.EADDRINUSE, errno.ENOMEM),
    "connect": (errno.ENETUNREACH, errno.EAGAIN, errno.ENOMEM),
    **dict.fromkeys(("getsockname", "getsockopt"), (errno.ENOBUFS,)),
}


def named(kind: str, number: int) -> str:
    return f"{kind}-{errno.errorcode.get(number, 'SHORT')}"


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that is preloaded, compiled now."""
    library = tmp_path_factory.mktemp("native") / "faults.so"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    source = HERE.parent / "native" / "faults.c"
    command = [*compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True, timeout=3 * PATIENCE_S)
    return library


@pytest.fixture(scope="module", params=[0, 2], ids=["one-loop", "three-loops"])
def server(request: pytest.FixtureRequest, faults: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a process for all tests: it is the scenarios that take time, not so much its start."""
    folder = tmp_path_factory.mktemp("server")
    with contextlib.suppress(pytest.skip.Exception):  # without certificates there is no TLS
        write_files(folder)
    server = FaultyServer(faults, folder, request.param)
    yield server
    server.end()


def check(server: FaultyServer, outcome: Outcome, is_harmless: bool, what: str) -> None:
    for expected, heard in outcome:
        if is_harmless:
            assert heard == expected, f"{what}: {len(heard)} of {len(expected)} bytes"
        else:
            assert expected.startswith(heard), f"{what}: {len(heard)} bytes, wrong ones"
    eventually(server.is_clean, f"{what}: something is left")
    with server.connect() as client:
        assert exchange([(client, LITTLE)]) == [LITTLE], f"{what}: the server no longer serves"
    assert server.echoes(LITTLE), f"{what}: datagrams are no longer served"
    eventually(server.is_clean, f"{what}: something is left")


def play(
    server: FaultyServer, scenario: str, kind: str, which: int, number: int, is_harmless: bool, says: str = ""
) -> int:
    """Play a scenario with a fault, check what came of it, and return whether the fault has struck.

    Args:
        says: what the base loop's ``run`` raises.
    """
    what = f"{scenario}, {named(kind, number)}, call {which}"
    server.clients_retry = not is_harmless or kind in CONNECTING
    server.tell("arm", kind, which, 0, 0, number, 1)
    try:
        outcome = SCENARIOS[scenario](server)
    except AssertionError as e:
        raise AssertionError(f"{what}: {e}") from e
    struck: int = server.tell("disarm")["struck"]
    check(server, outcome, is_harmless, what)
    errors = server.tell("errors")
    if says:
        assert len(errors) == struck
        assert all(error.startswith("run: ") and says in error for error in errors), errors
    else:
        assert errors == [], what
    return struck


def strike_each(server: FaultyServer, scenario: str, kind: str, number: int, is_harmless: bool, says: str = "") -> None:
    """Let each call of a scenario fail in a play of its own, until no play makes so many."""
    # How often a loop is woken, and how many reads a stream takes, is a matter of chance; but one call there must be.
    eventually(lambda: play(server, scenario, kind, 1, number, is_harmless, says), f"{scenario} never calls {kind}")
    for which in itertools.count(2):
        if not any(play(server, scenario, kind, which, number, is_harmless, says) for _ in range(TRIES)):
            return


@pytest.mark.parametrize(
    ("scenario", "kind", "number", "is_harmless"),
    [
        pytest.param(scenario, kind, number, is_harmless, id=f"{scenario}-{named(kind, number)}")
        for kind, number, is_harmless in KINDS
        for scenario in WHERE[kind]
    ],
)
def test_whichever_call_fails_nothing_is_lost_doubled_or_leaked(server, scenario, kind, number, is_harmless):
    if "tls" in scenario:
        imported("trustme")
    with server.in_use():
        strike_each(server, scenario, kind, number, is_harmless)


@pytest.mark.parametrize(
    ("kind", "number", "is_harmless"),
    [pytest.param(*case, id=named(*case[:2])) for case in KINDS + TABLE_FULL],
)
def test_calls_that_fail_at_random_lose_double_and_leak_nothing(server, kind, number, is_harmless):
    """All scenarios in a row, the clients beside them; these come to an end when nothing fails any more."""
    has_tls = (server.folder / "key.pem").exists()
    names = [name for name in SCENARIOS if "client" not in name and (has_tls or "tls" not in name)]
    clients = ["clients", "tls"] if has_tls else ["clients"]
    server.clients_retry = not is_harmless or kind in CONNECTING
    struck = 0
    with server.in_use():
        for seed in range(1, 40):
            server.tell("arm", kind, 0, 3, seed, number, 7)
            for client in clients:
                server.tell("fetch", client, server.clients_retry)
            outcome = [stream for name in names for stream in SCENARIOS[name](server)]
            struck += server.tell("disarm")["struck"]
            check(server, outcome + fetched(server), is_harmless, f"{named(kind, number)} at random, seed {seed}")
            assert server.tell("errors") == [], f"{named(kind, number)} at random, seed {seed}"
            if struck > 0 and (seed >= PLAYS or kind in PAUSING):
                break
        assert struck > 0


@pytest.mark.parametrize("server", [0], indirect=True, ids=["one-loop"])
@pytest.mark.parametrize(
    ("scenario", "kind", "number"),
    [
        *((scenario, WAIT, errno.ENOMEM) for scenario in SCENARIOS),
        ("client", WAIT, errno.EBADF),
        ("client", "timerfd_settime", errno.ENOMEM),
    ],
)
def test_a_loop_that_can_not_wait_says_so_and_can_be_run_again(server, scenario, kind, number):
    if "tls" in scenario:
        imported("trustme")
    with server.in_use():
        strike_each(server, scenario, kind, number, is_harmless=True, says=os.strerror(number))


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_loop_in_a_thread_that_can_not_wait_ends_with_its_connections_and_the_others_serve(faults, tmp_path, number):
    server = FaultyServer(faults, tmp_path, 2)
    for which in itertools.count(1):
        server.tell("arm", WAIT, which, 0, 0, number, 0)
        outcome = talk(server)
        assert server.tell("disarm")["struck"] == 1
        check(server, outcome, False, f"wait number {which}")
        if server.tell("errors") == []:  # it was not the base loop, which runs again
            break
    eventually(lambda: "ended by an exception" in server.said())
    assert os.strerror(number) in server.said()
    server.end()


@pytest.mark.parametrize(
    ("kind", "number"),
    [pytest.param(kind, number, id=named(kind, number)) for kind, numbers in OF_NEW.items() for number in numbers],
)
def test_a_server_that_can_not_be_made_or_run_says_so_and_leaves_nothing(server, kind, number):
    """Neither the sockets, for streams and datagrams, nor the loops: its own and one in a thread."""
    with server.in_use():
        which = 0
        while True:
            before = len(server.said())
            server.tell("arm", kind, which + 1, 0, 0, number, 0)
            error = server.tell("new_server")
            struck = server.tell("disarm")["struck"]
            if server.tell("errors"):  # it struck the base loop on its way back to wait from the last order: again
                continue
            if struck == 0:
                break
            which += 1
            # The end of a loop in a thread, or a channel that can't be taken out, is told in the log.
            told = error or server.said()[before:]
            reasons = (f"[Errno {number}]", os.strerror(number), "has no local address")
            assert any(reason in told for reason in reasons), told
            eventually(server.is_clean)
        assert which > 0
        assert error == ""


def test_a_server_for_which_no_descriptor_can_be_held_back_is_made_all_the_same(server):
    with server.in_use():
        server.tell("arm", "open", 1, 0, 0, errno.EMFILE, 0)
        assert server.tell("new_server") == ""
        assert server.tell("disarm")["struck"] == 1
        eventually(server.is_clean)
