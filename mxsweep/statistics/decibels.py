"""Compare ratios in decibels that were measured in more than one way.

The sums of squares behind a ratio are added up in another order by the library for a CPU, by torch's operations there
and by those on a GPU: their last bits differ, by 1e-14 dB or so, where every element is the same.
"""

import math

SAME_DB = 1e-9  # ratios no further apart are equal


def compare_db(a: float | None, b: float | None) -> int:
    """Return 1 where ratio a is above b, -1 where it is below, 0 where they are equal: a key by `functools.cmp_to_key`.

    None, of what was not measured, and NaN, which a block without a scale brings, are as low as -Inf.
    """
    a, b = (-math.inf if one is None or math.isnan(one) else one for one in (a, b))
    if a == b or abs(a - b) <= SAME_DB:  # two infinite ones have no distance
        return 0
    return 1 if a > b else -1
