"""`evenly_spaced`: places spread over a sequence, in whole numbers, so that none is rounded beyond its end."""

from functools import lru_cache


@lru_cache(maxsize=64)
def evenly_spaced(length: int, count: int) -> tuple[int, ...]:
    """Return places from the first to the last of a sequence, as evenly as whole numbers can be.

    `place_i = round(i (length - 1) / (count - 1))`, halves to the even number. A float32 holds whole numbers up to 2^24
    only: beyond, `linspace` gives `length` for the last place, which does not exist.

    Args:
        length: Number of items of the sequence.
        count: Number of places; all places if it is `length` or more, the first one if it is 1.

    Returns:
        Ascending places below `length`, no two the same.

    Example:
        >>> evenly_spaced(9, 3)
        (0, 4, 8)
    """
    if count >= length:
        return tuple(range(length))
    return tuple(_divided(place * (length - 1), count - 1) for place in range(count)) if count > 1 else (0,) * count


def _divided(number: int, by: int) -> int:
    """Return a quotient of whole numbers, rounded, halves to the even number."""
    quotient, rest = divmod(number, by)
    return quotient + (2 * rest > by or (2 * rest == by and quotient % 2 == 1))
