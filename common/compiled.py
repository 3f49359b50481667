"""Loops compiled by Numba when the file that holds them is first imported, and kept beside it for the next time."""

from collections.abc import Callable
from typing import Any

from numba import njit, types


def compiled(*arguments: types.Type, **options: Any) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function for these types at once; options: njit's.

    It is kept beside its file, or in the user's cache folder; where neither can be written, or what is kept there is
    damaged, for this process. What is wrong with the function itself is raised.
    """

    def compile_now(function: Callable) -> Callable:
        try:
            return njit(arguments, cache=True, **options)(function)
        except Exception:  # no folder, a full disk, or a damaged file, which fails in any way at all
            return njit(arguments, **options)(function)

    return compile_now
