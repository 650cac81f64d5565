"""Compiles the suite's C programs when they are older than their sources."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("-O2", "-Wall", "-Wextra", "-std=gnu11")
_LIMIT_S = 120


class BuildError(RuntimeError):
    """A C program could not be compiled."""


def compiler() -> list[str]:
    """Return the command that compiles C: ``CC``, or gcc."""
    return shlex.split(os.environ.get("CC", "gcc"))


def c_program(name: str) -> Path:
    """Return the program made of ``c/NAME.c``, compiled now if need be.

    Raises:
        BuildError: there is no C compiler, or it refused the source.
    """
    source, program = ROOT / "c" / f"{name}.c", ROOT / "build" / name
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    program.parent.mkdir(exist_ok=True)
    # Compiled aside and renamed: whoever runs the old one, or builds at the same time, is not disturbed.
    fresh = program.with_name(f"{name}.{os.getpid()}")
    command = [*compiler(), *_FLAGS, str(source), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
        fresh.replace(program)
    except FileNotFoundError:
        raise BuildError(f"{name}.c needs a C compiler, and {compiler()[0]} is not there") from None
    except subprocess.CalledProcessError as e:
        raise BuildError(f"{shlex.join(command)} failed:\n{e.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{shlex.join(command)} took more than {_LIMIT_S} s") from None
    finally:
        fresh.unlink(missing_ok=True)
    return program
