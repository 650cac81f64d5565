"""The servers that are compared, each a program of its own: ``python -m peers.NAME --mode SERVICE``.

What one serves is a *mode*. They mean the same everywhere: ``echo`` sends back what arrives; ``line`` and ``frame``
send back each complete message, a line or what stands behind its length (4 bytes, in network order); ``broadcast``
sends each frame to every connection; ``sudoku`` answers each line with the solution of the puzzle on it. A mode with a
word behind it (``line-joined``) is the same service in another form.
"""
