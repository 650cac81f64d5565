"""Runs the tests under valgrind's memory checker, and fails if compiled code of ours touches what is not its own.

    python tests/native/under_valgrind.py [tests/test_buffer.py …]         every file if none is named; some two hours

Judged are reads and writes beside memory or after its end, wrong frees, and overlapping copies, with one of our
functions among the innermost ones. Values that nobody has set are not: CPython 3.11 multiplies such a one by zero when
it makes an int of zero bytes, and valgrind takes that zero, and all that depends on it, for unknown from then on. Nor
are reports from inside the interpreter and the C library, which compare strings thirty-two bytes at a time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_INNERMOST = 4
_MINUTES = 40
# They count instructions themselves, preload a library, or run programs that this process does not see into.
_LEFT_OUT = ("test_cost.py", "test_faults.py", "test_docs.py", "test_package.py", "integration", "examples")


def reports_of_ours(log: str) -> list[str]:
    """Return the reports in a log that have one of our functions among the innermost."""
    found = []
    for report in re.split(r"^==\d+== ?\n", log, flags=re.MULTILINE):
        frames = re.findall(r"==\d+== +(?:at|by) 0x\w+: (.*)", report)
        if any("pymuduo" in frame for frame in frames[:_INNERMOST]):
            found.append(report)
    return found


def check(path: Path) -> bool:
    """Run one file of tests; whether nothing was found."""
    with tempfile.NamedTemporaryFile("r", suffix=".valgrind") as log:
        options = ["--undef-value-errors=no", "--fair-sched=yes", "--num-callers=20", f"--log-file={log.name}"]
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=1200", str(path)]
        try:
            done = subprocess.run(
                ["valgrind", *options, *tests],
                env=os.environ | {"PYTHONMALLOC": "malloc"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_MINUTES * 60,
            )
            ended, told = done.returncode, done.stdout
        except subprocess.TimeoutExpired as e:
            ended, told = None, e.stdout or b""
        reports = reports_of_ours(log.read())
    # 5: no test left to run, as when all of a file's are for the other build.
    end = f"not ended after {_MINUTES} minutes" if ended is None else f"exit code {ended}"
    print(f"{path.relative_to(TESTS.parent)}: {end}, {len(reports)} reports", flush=True)
    for report in reports:
        print(report)
    if ended not in {0, 5}:
        print(told[-4000:].decode(errors="replace"))
    return not reports and ended in {0, 5}


def main() -> int:
    """Check the files named, or all."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or [
        path for path in sorted(TESTS.rglob("test_*.py")) if not set(path.parts) & set(_LEFT_OUT)
    ]
    results = [check(path) for path in paths]  # every one, whatever the others found
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
