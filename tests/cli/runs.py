"""The command line as a fixture has it run: to its end, or while a block lasts."""

from __future__ import annotations

import subprocess

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from tests.support.command_line import Running


class Run(Protocol):
    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]: ...


class Start(Protocol):
    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Running]: ...
