"""Two programs, each runnable as a file; a package only so that tools can tell its server.py from chat's."""
