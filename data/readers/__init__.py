"""Readers of dataset formats: each turns the official files of one dataset into records, once.

A reader is a module with `convert(root, out, *, split, progress, **options) -> Records` and, where it has options, one
dataclass of them whose name ends in `Options`.
"""

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int, str], None]  # files done, files in all, the next one's name
