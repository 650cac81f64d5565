"""The package as a whole: what is exported, which build runs, what importing it does."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

import pytest

import pymuduo
from conftest import IS_FREE_THREADED


def test_everything_exported_exists_and_says_what_it_is():
    for name in pymuduo.__all__:
        thing = getattr(pymuduo, name)
        if isinstance(thing, type):
            assert thing.__doc__, f"{name} has no docstring"


def test_the_build_that_was_asked_for_is_the_one_that_runs():
    asked = os.environ.get("PYMUDUO_EXPECT")
    if asked is None:
        pytest.skip("PYMUDUO_EXPECT does not say which build this should be")
    assert (asked == "compiled") == pymuduo.COMPILED


def test_a_compiled_build_has_every_hot_module_compiled():
    from pymuduo import _sys, buffer, channel, event_loop, output_queue, tcp_connection, tcp_server, timer_queue

    for module in (_sys, buffer, channel, event_loop, output_queue, tcp_connection, tcp_server, timer_queue):
        assert str(module.__file__).endswith(".so") == pymuduo.COMPILED


def test_importing_prints_nothing_and_starts_nothing():
    program = "import threading, pymuduo; assert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this interpreter always has the GIL")
def test_importing_any_module_leaves_the_gil_off():
    found = {module.name for module in pkgutil.walk_packages(pymuduo.__path__, "pymuduo.")}
    program = f"import sys, {', '.join(found - {'pymuduo.codec.protobuf'})}; sys.exit(sys._is_gil_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    assert subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, check=False).returncode == 0
