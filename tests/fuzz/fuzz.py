"""Looks for inputs that break a promise, or that reach code which no input has reached before.

    python tests/fuzz/fuzz.py                          every target, ten seconds each
    python tests/fuzz/fuzz.py --seconds 3600 buffer    one of them for an hour

It needs ``atheris``, whose coverage sees Python but no compiled code: run it on the plain-Python build, whose source is
the same. Each target runs in a process of its own. Inputs that reach something new are kept in ``--corpus`` (give
``tests/fuzz/corpus`` to keep them for good: smallest ones, after ``--minimize``). One that breaks a promise is written
to ``crash-…`` there, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def run_target(name: str, arguments: list[str]) -> None:
    """Become the fuzzer of one target; does not return."""
    import atheris  # not needed to be told what there is

    with atheris.instrument_imports(include=["pymuduo"]):
        from fuzz_targets import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def fuzz(name: str, seconds: float, corpus: Path, minimize: bool) -> bool:
    """Fuzz one target in a process of its own; whether it held."""
    from fuzz_targets import seeds

    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        begin, grown = Path(scratch, "seeds"), Path(scratch, "grown")
        begin.mkdir()
        grown.mkdir()
        for number, seed in enumerate(seeds(name)):
            (begin / f"seed-{number}").write_bytes(seed)
        command = [sys.executable, __file__, "--be", name, f"-artifact_prefix={folder}/", "-max_len=4096"]
        if minimize:
            folders = [str(grown), str(folder)]
            done = subprocess.run([*command, "-merge=1", *folders], capture_output=True, text=True, check=False)
            for path in folder.glob("*"):
                path.unlink()
            for path in grown.glob("*"):
                path.replace(folder / path.name)
        else:
            command += [f"-max_total_time={seconds:g}", "-print_final_stats=1", "-timeout=10", str(folder), str(begin)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    tail = done.stderr[-3000:]
    stats = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line or "DONE" in line]
    print(f"{name}: {'held' if done.returncode == 0 else 'BROKEN'}; {'; '.join(stats)}")
    if done.returncode != 0:
        print(tail)
    return done.returncode == 0


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--be"]:
        run_target(sys.argv[2], sys.argv[3:])
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description="looks for inputs that break a promise")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=10, help="for each target; default %(default)s")
    parser.add_argument("--corpus", type=Path, default=None, help="where inputs are kept; default: nowhere")
    parser.add_argument("--minimize", action="store_true", help="only make the corpus smaller")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        results = [fuzz(name, options.seconds, corpus.resolve(), options.minimize) for name in options.targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
