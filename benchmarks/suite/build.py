"""Compiles the suite's C programs when they are older than their sources."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("-O2", "-Wall", "-Wextra", "-std=gnu11")
_LIMIT_S = 120


class BuildError(RuntimeError):
    """A C program could not be compiled."""


def compiler() -> list[str]:
    """Return the command that compiles C: ``CC``, or gcc."""
    return shlex.split(os.environ.get("CC", "gcc"))


def c_program(name: str, *, with_tls: bool = False) -> Path:
    """Return the program made of ``c/NAME.c``, compiled now if need be; *with_tls*: with OpenSSL's library.

    Raises:
        BuildError: there is no C compiler, or it refused the source.
    """
    source, program = ROOT / "c" / f"{name}.c", ROOT / "build" / (f"{name}-tls" if with_tls else name)
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    program.parent.mkdir(exist_ok=True)
    # Compiled aside and renamed: whoever runs the old one, or builds at the same time, is not disturbed.
    fresh = program.with_name(f"{program.name}.{os.getpid()}")
    command = [*compiler(), *_FLAGS, str(source), "-o", str(fresh)]
    command += ["-DWITH_TLS", "-lssl", "-lcrypto"] if with_tls else []
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


def certificate() -> tuple[Path, Path]:
    """Return the files of a certificate for the TLS servers, on the curve P-256, and its key; made now if need be.

    Raises:
        BuildError: there is no ``openssl`` command, or it failed.
    """
    folder = ROOT / "build" / "certificate"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        # Both at once, by renaming: nobody ever sees one of them, or one that does not fit the other.
        with tempfile.TemporaryDirectory(prefix="certificate.", dir=folder.parent) as fresh:
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            command += ["-days", "3650", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]
            (made := Path(fresh, "made")).mkdir()
            try:
                subprocess.run(command, cwd=made, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
            except FileNotFoundError:
                raise BuildError("a certificate needs the command openssl, which is not there") from None
            except (OSError, subprocess.SubprocessError) as e:
                raise BuildError(f"no certificate: {e}") from None
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(folder)
    return folder / "cert.pem", folder / "key.pem"
