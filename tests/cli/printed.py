"""What a command has printed for a program."""

from __future__ import annotations

import json

from typing import Any


def lines(text: str) -> list[list[str]]:
    """Return the fields of each line."""
    return [line.split("\t") for line in text.splitlines()]


def objects(text: str) -> list[dict[str, Any]]:
    """Return the object on each line."""
    return [json.loads(line) for line in text.splitlines()]
