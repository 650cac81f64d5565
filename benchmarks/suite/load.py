"""One run of the load generator, and what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suite.build import c_program

# The generator bounds itself (ramp-up 30 s, drain 10 s); this is for one that hangs all the same.
_MARGIN_S = 60.0


class LoadError(Exception):
    """The load generator saw an error: a wrong reply, a lost connection, an unanswered message."""


@dataclass(frozen=True)
class Figures:
    """What one run measured. Latencies in µs by percentile (``p50`` … ``p99.9``, ``max``).

    The server's processor time is that of all its threads between the begin and the end of the measured seconds. The
    sum is exact; its parts are not: the kernel splits it into user and system by looking every few milliseconds, so a
    short run, or a small part (the user time of a C server), tells only the order of magnitude.

    Attributes:
        unsent: open loop: messages that were due, but could not be sent in time.
        generator_busy: the part of the time that the load generator was running.
        waited: the part of the time that server or generator (the worse) was kept from its processor by other
            programs: the noise in this figure. With a processor each it is nearly 0 on a quiet machine. (The threads of
            a server that has several wait for one another, too, and what they wait adds up.)
    """

    messages_per_s: float
    mib_per_s: float
    latency_us: dict[str, float]
    unsent: int
    generator_busy: float
    waited: float
    user_us_per_message: float | None
    system_us_per_message: float | None

    @property
    def cpu_us_per_message(self) -> float | None:
        """The server's processor time a message, in µs; None if it was not measured."""
        if self.user_us_per_message is None or self.system_us_per_message is None:
            return None
        return self.user_us_per_message + self.system_us_per_message

    @property
    def server_busy(self) -> float | None:
        """The part of the time that the server was running; more than 1 if several of its threads were."""
        cpu_us = self.cpu_us_per_message
        return None if cpu_us is None else cpu_us * self.messages_per_s / 1e6


def drive(
    port: int,
    options: Sequence[str],
    *,
    duration_s: float,
    warmup_s: float,
    cpu: int | None = None,
    pid: int | None = None,
    with_tls: bool = False,
) -> Figures:
    """Put the server at *port* under load; *pid*: measure its processor time too.

    Raises:
        LoadError: see there. BuildError: the generator can't be compiled.
    """
    command = [str(c_program("loadgen", with_tls=with_tls)), "--json", "--port", str(port), *options]
    command += ["--duration", str(duration_s), "--warmup", str(warmup_s)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    command += [] if pid is None else ["--pid", str(pid)]
    limit_s = duration_s + warmup_s + _MARGIN_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load generator did not end within {limit_s:g} s") from None
    if done.returncode != 0:
        raise LoadError(_reason(done))
    return _figures(json.loads(done.stdout))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip()
    if done.stdout:
        kinds = json.loads(done.stdout)["errors"].items()
        said = "; ".join([said] * bool(said) + [f"{kind}: {count}" for kind, count in kinds if count])
    return said or f"the load generator ended with status {done.returncode}"


def _figures(measured: dict[str, Any]) -> Figures:
    def per_message(key: str) -> float | None:
        return measured[key] / measured["messages"] * 1e6 if key in measured else None

    return Figures(
        messages_per_s=measured["messages_per_s"],
        mib_per_s=measured["mib_per_s"],
        latency_us=measured["latency_us"],
        unsent=measured["unsent"],
        generator_busy=measured["generator_busy"],
        waited=max(measured["generator_waited"], measured.get("server_waited", 0.0)),
        user_us_per_message=per_message("server_user_s"),
        system_us_per_message=per_message("server_system_s"),
    )
