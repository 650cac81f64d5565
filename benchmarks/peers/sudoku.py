"""A Sudoku solver: work for a server's processor, in Python alone."""

from __future__ import annotations

_ALL = 0b111111111  # a bit for each digit
_CELLS = 81
_DIGIT_OF = {1 << k: ord("1") + k for k in range(9)}
_BIT_OF = {digit: bit for bit, digit in _DIGIT_OF.items()}
_BLANKS = frozenset(b"0.")
# Each cell's row, column and box, as places in one list of 27.
_UNITS = tuple((cell // 9, 9 + cell % 9, 18 + cell // 27 * 3 + cell % 9 // 3) for cell in range(_CELLS))

NO_SOLUTION = b"NoSolution"


def solve(puzzle: bytes) -> bytes:
    """Return the solution of 81 digits, row by row, where 0 or a dot is a blank; ``NO_SOLUTION`` if there is none.

    Raises:
        ValueError: that is no puzzle.
    """
    if len(puzzle) != _CELLS:
        raise ValueError(f"a puzzle has {_CELLS} cells, got {len(puzzle)}")
    used = [0] * 27
    blanks = []
    for cell, digit in enumerate(puzzle):
        if digit in _BLANKS:
            blanks.append(cell)
            continue
        bit = _BIT_OF.get(digit)
        if bit is None:
            raise ValueError(f"a cell is a digit or a dot, got {chr(digit)!r}")
        row, column, box = _UNITS[cell]
        if (used[row] | used[column] | used[box]) & bit:
            return NO_SOLUTION
        _flip(used, cell, bit)
    solution = bytearray(puzzle)
    return bytes(solution) if _fill(blanks, used, solution) else NO_SOLUTION


def _fill(blanks: list[int], used: list[int], solution: bytearray) -> bool:
    """Fill the blanks, the one with the fewest possible digits first; give them back as they were if it can't be."""
    if not blanks:
        return True
    fewest = 10
    for place, cell in enumerate(blanks):
        row, column, box = _UNITS[cell]
        possible = _ALL & ~(used[row] | used[column] | used[box])
        count = possible.bit_count()
        if count < fewest:
            fewest, best_place, best_possible = count, place, possible
            if count <= 1:
                break
    cell = blanks.pop(best_place)
    while best_possible:
        bit = best_possible & -best_possible
        best_possible ^= bit
        _flip(used, cell, bit)
        solution[cell] = _DIGIT_OF[bit]
        if _fill(blanks, used, solution):
            return True
        _flip(used, cell, bit)
    blanks.insert(best_place, cell)
    return False


def _flip(used: list[int], cell: int, bit: int) -> None:
    row, column, box = _UNITS[cell]
    used[row] ^= bit
    used[column] ^= bit
    used[box] ^= bit
