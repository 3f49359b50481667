"""Loops compiled by Numba when the file that holds them is first imported, and kept beside it for the next time."""

from collections.abc import Callable
from typing import Any

from numba import njit, types


def compiled(*arguments: types.Type, **options: Any) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function for these types at once; options: njit's.

    It is kept beside its file, or in the user's cache folder; where neither can be written, for this process.
    """

    def compile_now(function: Callable) -> Callable:
        try:
            return njit(arguments, cache=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
            return njit(arguments, **options)(function)

    return compile_now
