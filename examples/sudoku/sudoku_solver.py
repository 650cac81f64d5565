"""Solves sudoku: 81 digits in, row by row with 0 for an empty cell, and 81 digits out.

What it teaches: work on whole boards at a time. A digit's candidates are one integer with a bit for each of the 81
cells, so nine integers are the state of a puzzle, and three operations on each of them find every cell with a single
candidate, where a loop over the cells would need hundreds.

Cells with one candidate are filled in, then units (rows, columns, boxes) with one place for a digit; when neither is
left, a cell with few candidates is guessed, and what turns out wrong is taken back.

No puzzle may hold up a server: after ``MAX_STEPS`` guesses the solver gives up. Real puzzles, the hardest known among
them, need far fewer; those that are made to be hard for programs need up to millions.
"""

from __future__ import annotations

from collections.abc import Iterator

CELLS = 81
MAX_STEPS = 500
NO_SOLUTION = b"NoSolution"
TOO_HARD = b"TooHard"

_ALL = (1 << CELLS) - 1
_BOX_CORNERS = (0, 3, 6, 27, 30, 33, 54, 57, 60)
_UNITS = (
    *(sum(1 << row * 9 + column for column in range(9)) for row in range(9)),
    *(sum(1 << row * 9 + column for row in range(9)) for column in range(9)),
    *(sum(1 << corner + cell // 3 * 9 + cell % 3 for cell in range(9)) for corner in _BOX_CORNERS),
)


def _others_out_of_reach(cell: int) -> int:
    """Return the cells that may hold the same digit as *cell*, and itself."""
    reach = 0
    for unit in _UNITS:
        if unit >> cell & 1:
            reach |= unit
    return _ALL & ~reach | 1 << cell


_KEEP = {1 << cell: _others_out_of_reach(cell) for cell in range(CELLS)}


class TooHardError(Exception):
    """The solver has given up after ``MAX_STEPS`` guesses."""


def is_puzzle(puzzle: bytes) -> bool:
    """Whether these are 81 digits, solvable or not."""
    return len(puzzle) == CELLS and puzzle.isdigit()


def answer(puzzle: bytes) -> bytes:
    """Return a solution, ``NO_SOLUTION`` if there is none, or ``TOO_HARD``: what a server sends; any thread."""
    try:
        return next(solutions(puzzle), NO_SOLUTION)
    except TooHardError:
        return TOO_HARD


def is_solution(puzzle: bytes, grid: bytes) -> bool:
    """Whether *grid* is complete, breaks no rule, and has the digits that *puzzle* gives."""
    if not is_puzzle(puzzle) or not is_puzzle(grid):
        return False
    if any(given not in (ord("0"), digit) for given, digit in zip(puzzle, grid, strict=True)):
        return False
    full = set(b"123456789")
    rows = [grid[at : at + 9] for at in range(0, CELLS, 9)]
    columns = [grid[at::9] for at in range(9)]
    boxes = [grid[at : at + 3] + grid[at + 9 : at + 12] + grid[at + 18 : at + 21] for at in _BOX_CORNERS]
    return all(set(unit) == full for unit in (*rows, *columns, *boxes))


def solutions(puzzle: bytes, max_steps: int = MAX_STEPS) -> Iterator[bytes]:
    """Yield the solutions one after the other; a proper puzzle has exactly one.

    Raises:
        TooHardError: that took more than *max_steps* guesses.
        ValueError: *puzzle* is not 81 digits.
    """
    if not is_puzzle(puzzle):
        raise ValueError(f"a puzzle is 81 digits, got {puzzle!r}")
    boards = [_ALL] * 9
    for cell, digit in enumerate(puzzle):
        if digit != ord("0"):
            for other in range(9):
                if other != digit - ord("1"):
                    boards[other] &= ~(1 << cell)
    stack = [(boards, _ALL)]
    while stack:
        boards, unfilled = stack.pop()
        unfilled = _fill(boards, unfilled)
        if unfilled == 0:
            yield _as_digits(boards)
        elif unfilled > 0:
            max_steps -= 1
            if max_steps < 0:
                raise TooHardError
            guess = _few_candidates(boards) & unfilled or unfilled
            guess &= -guess
            for digit, board in enumerate(boards):
                if board & guess:
                    branch = [other & ~guess for other in boards]
                    branch[digit] = board
                    stack.append((branch, unfilled))


def _fill(boards: list[int], unfilled: int) -> int:
    """Fill in what follows without guessing; return the cells that stay open, or -1 if there is a contradiction."""
    while True:
        once = twice = 0
        for board in boards:
            twice |= once & board
            once |= board
        if once != _ALL:
            return -1  # a cell has no candidate
        singles = unfilled & ~twice
        if singles:
            unfilled ^= singles
            for digit in range(9):
                here = boards[digit] & singles
                while here:
                    cell = here & -here
                    here ^= cell
                    boards[digit] &= _KEEP[cell]
            continue
        if not unfilled:
            return 0
        found = _make_singles(boards, unfilled)
        if found <= 0:
            return found or unfilled


def _make_singles(boards: list[int], unfilled: int) -> int:
    """Where a digit has one place in a unit, take the others away; return those places, or -1: a contradiction."""
    found = 0
    singles = [0] * 9
    for digit, board in enumerate(boards):
        for unit in _UNITS:
            places = board & unit
            if not places & (places - 1):
                if not places:
                    return -1  # this digit can stand nowhere in the unit
                singles[digit] |= places
        singles[digit] &= unfilled
        if found & singles[digit]:
            return -1  # two digits have this as their only place
        found |= singles[digit]
    if found:
        boards[:] = [board & ~found | single for board, single in zip(boards, singles, strict=True)]
    return found


def _few_candidates(boards: list[int]) -> int:
    """Return the cells with two candidates; if there are none, those with three."""
    once = twice = thrice = more = 0
    for board in boards:
        more |= thrice & board
        thrice |= twice & board
        twice |= once & board
        once |= board
    return twice & ~thrice or thrice & ~more


def _as_digits(boards: list[int]) -> bytes:
    digits = bytearray(CELLS)
    for digit, board in enumerate(boards, ord("1")):
        rest = board
        while rest:
            cell = rest & -rest
            rest ^= cell
            digits[cell.bit_length() - 1] = digit
    return bytes(digits)
