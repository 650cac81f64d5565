"""Looks for inputs that break a promise, or that reach code which no input has reached before.

    python tests/fuzz/fuzz.py                          every target, ten seconds each
    python tests/fuzz/fuzz.py --seconds 3600 buffer    one of them for an hour
    python tests/fuzz/fuzz.py --jobs 4                 four at the same time

It needs ``atheris``, whose coverage sees Python but no compiled code: run it on the plain-Python build, whose source is
the same. Each target runs in a process of its own. With ``--keep`` the shortest inputs that have reached something new
become the corpus: ``corpus/NAME.txt``, base64, one a line. One that breaks a promise is shown, and the exit code is 1;
so it is if hardly an input was tried.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
_MOST_KEPT = 120  # of a target
_FEWEST_A_CPU_SECOND = 5  # inputs; fewer are no search. Hundreds are usual
_FEWEST_A_SECOND = 0.5  # for a target that waits instead; a busy machine's lowest priority is good for some
sys.path[:0] = [str(HERE), str(HERE.parent)]


def run_target(name: str, arguments: list[str]) -> None:
    """Become the fuzzer of one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["pymuduo"]):
        from fuzz_targets import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def run(command: list[str]) -> tuple[int, float, str]:
    """Return the exit code of a command, the seconds of processor time it took, and what it said."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return process.returncode, usage.ru_utime + usage.ru_stime, said.read()


def fuzz(name: str, seconds: float, keep: bool) -> bool:
    """Fuzz one target in a process of its own; whether it held."""
    from fuzz_targets import CORPUS, inputs, kept

    with tempfile.TemporaryDirectory() as scratch:
        begin, grown = Path(scratch, "begin"), Path(scratch, "grown")
        begin.mkdir()
        grown.mkdir()
        for number, data in enumerate(inputs(name)):
            (begin / str(number)).write_bytes(data)
        command = [sys.executable, __file__, "--be", name, f"-artifact_prefix={scratch}/", "-max_len=4096"]
        search = [f"-max_total_time={seconds:g}", "-print_final_stats=1", "-timeout=100", str(grown), str(begin)]
        code, cpu_s, said = run([*command, *search])
        stats = [line for line in said.splitlines() if "number_of_executed_units" in line or "DONE" in line]
        tried = re.search(r"number_of_executed_units: (\d+)", said)
        fewest = max(cpu_s * _FEWEST_A_CPU_SECOND, seconds * _FEWEST_A_SECOND)
        verdict = "BROKEN" if code != 0 else "held" if tried and int(tried[1]) >= fewest else "HARDLY TRIED"
        print(f"{name}: {verdict}; {'; '.join(stats)}", flush=True)
        if code != 0:
            print(said[-6000:])
            for path in Path(scratch).glob("*-*"):  # crash-…, timeout-…: the input that did it
                print(f"{path.name}: {base64.b64encode(path.read_bytes()).decode()}")
        elif keep:
            found = sorted({*map(Path.read_bytes, grown.iterdir()), *kept(name)}, key=lambda data: (len(data), data))
            lines = [base64.b64encode(data).decode() for data in found[:_MOST_KEPT]]
            (CORPUS / f"{name}.txt").write_text("\n".join([*lines, ""]))
    return verdict == "held"


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--be"]:
        run_target(sys.argv[2], sys.argv[3:])
    from fuzz_targets import TARGETS  # not before atheris has had its turn

    parser = argparse.ArgumentParser(description="looks for inputs that break a promise")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=10, help="for each target; default %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="how many at the same time; default %(default)s")
    parser.add_argument("--keep", action="store_true", help="let what was found replace the corpus")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda name: fuzz(name, options.seconds, options.keep), options.targets))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
