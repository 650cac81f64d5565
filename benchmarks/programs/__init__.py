"""Programs that measure one thing inside a process: each prints its figures as one JSON object.

    cd benchmarks; python -m programs.calls --peer uvloop

They share ``loops`` (a peer's event loop under names that all peers have) and ``command`` (options, measuring,
printing). ``suite.inprocess`` runs them in turns and compares.
"""
