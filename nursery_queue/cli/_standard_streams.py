"""Standard input, output and error of a process that was started without some of them."""

from __future__ import annotations

import os
import sys

from typing import Final


_NAMES: Final = ("stdin", "stdout", "stderr")  # by their numbers


def open_missing() -> None:
    """Open /dev/null in place of those that were closed, as by `>&-`.

    The next file or connection to be opened would get their numbers, and the log with it.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is the one closed
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "w" if number else "r", closefd=False))
