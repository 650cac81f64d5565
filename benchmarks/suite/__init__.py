"""The benchmark suite: build the C programs, run servers under load and programs in turns, report.

Each module imports only from those before it: ``build``, ``servers``, ``load``, ``workloads``, ``runner``,
``inprocess``, ``report``, ``charts``. A new peer is one entry in ``servers.PEERS``, a new workload one in
``workloads.WORKLOADS``, a new program one in ``inprocess.PROGRAMS``.
"""
