"""Compiles the library with Cython; ``PYMUDUO_PURE=1`` leaves it plain Python.

A build that is asked to compile and can't fails: it never falls back in silence.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("src/pymuduo")
PROCESSORS = len(os.sched_getaffinity(0))
# What stays plain Python even in a compiled build: not on any hot path, and easier to step through.
PLAIN = {"__init__.py", "_sys.py", "poll.py", "event_loop_thread.py", "event_loop_thread_pool.py"}
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # types come from the .pxd files alone
    "binding": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "freethreading_compatible": True,
    "nonecheck": True,  # a method of None raises, as in Python, instead of crashing
}


def compiled_modules() -> list[Extension]:
    """Return one extension for each compiled module."""
    from Cython.Build import cythonize

    sources = [PACKAGE / "_sys.pyx"]
    sources += sorted(p for p in PACKAGE.rglob("*.py") if p.name not in PLAIN and p.with_suffix(".pxd").exists())
    extensions = []
    for source in sorted(sources, key=lambda path: path.stat().st_size, reverse=True):  # the longest to compile first
        name = ".".join(source.with_suffix("").relative_to("src").parts)
        extensions.append(Extension(name, [str(source)], extra_compile_args=["-O3", "-fno-plt"]))
    compiled: list[Extension] = cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        nthreads=PROCESSORS,
        annotate=bool(os.environ.get("PYMUDUO_ANNOTATE")),
    )
    return compiled


setup(
    ext_modules=[] if os.environ.get("PYMUDUO_PURE") else compiled_modules(),
    options={"build_ext": {"parallel": PROCESSORS}},
)
