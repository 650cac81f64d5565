"""The parts of the benchmark suite: build the C programs, run servers, measure, report."""
