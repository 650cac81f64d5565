"""The benchmark suite: build the C programs, run servers under load in turns, report.

Each module imports only from those before it: ``build``, ``servers``, ``load``, ``workloads``, ``runner``, ``report``.
A new peer is one entry in ``servers.PEERS``, a new workload one in ``workloads.WORKLOADS``.
"""
