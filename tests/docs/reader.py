"""Somebody who follows a page from top to bottom, and types what it says.

What a block says of itself, by its language or by the comment above it:

| kind | what the reader does |
|---|---|
| `file NAME` | writes it to that file |
| `sh`, `sql` | runs it, by bash or psql; it must succeed |
| `eventually` | the same, again and again until it prints what the page says |
| `fails` | the same; it must fail |
| `worked` | the same, after a worker has run all that is ready |
| `background` | runs it until the page ends; its first line is the DSN |
| `parse` | sees that bash understands it: it is not for this machine |
| `text` | compares it with what the block above has printed; `...` stands for anything |
| `fragment` | runs it with the names that the page's fragments have to do with |
| `pytest` | nothing: pytest runs it |
| `mermaid` | nothing: test_diagrams.py looks up what it names |
"""

from __future__ import annotations

import contextlib
import doctest
import os
import shutil
import signal
import subprocess
import sys
import time

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs

from tests.docs.pages import ROOT, Block
from tests.support.psql import PATIENCE, program, psql_program


KINDS = {
    "file",
    "sh",
    "sql",
    "eventually",
    "fails",
    "worked",
    "background",
    "parse",
    "text",
    "fragment",
    "pytest",
    "mermaid",
}


@attrs.define(eq=False)
class Reader:
    """One page's reader, in a directory of their own."""

    folder: Path
    dsn: str
    work: Callable[[], None]  # runs all that is ready
    names: dict[str, Any] = attrs.field(factory=dict[str, Any])
    _said: str = ""
    _background: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack, init=False)

    def __attrs_post_init__(self) -> None:
        programs = self.folder / ".programs"
        programs.mkdir()
        for name, command in {
            "python": f'"{sys.executable}"',
            "nursery-queue": f'"{sys.executable}" -m nursery_queue',
            "psql": f'"{psql_program()}"',
        }.items():
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
            script.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.dsn,
            "PATH": os.pathsep.join([str(self.folder / ".programs"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }

    def follow(self, page: list[Block]) -> None:
        """Do what all blocks say, one after the other."""
        with self._background:
            for block, after in zip(page, [*page[1:], None], strict=True):
                promised = after.source if after and after.kind == "text" else None
                self._do(block, promised)

    def _do(self, block: Block, promised: str | None) -> None:
        match block.kind:
            case "file":
                assert block.name, f"{block} does not say which file it is"
                (self.folder / block.name).write_text(block.source, encoding="utf-8")
            case "text":
                assert printed_as_promised(block.source, self._said), (
                    f"{block} does not show what was printed:\n{self._said}"
                )
            case "parse":
                self._bash("-n", "-c", block.source)
            case "background":
                self.dsn = self._background.enter_context(self._running(block))
            case "fragment":
                exec(block.code, self.names)  # noqa: S102  # that is the point
            case "eventually":
                assert promised, f"{block} does not say what it prints in the end"
                self._until(block, promised)
            case "pytest" | "mermaid":
                pass  # a test by itself, wherever it stands, or a picture
            case "worked":
                self.work()
                self._said = self._run(block)
            case _:
                self._said = self._run(block)

    def _until(self, block: Block, promised: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            self._said = self._run(block)
            if printed_as_promised(promised, self._said) or time.monotonic() > deadline:
                return

    def _run(self, block: Block) -> str:
        if block.language == "sql":
            options = ["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", self.dsn]
            command = [str(psql_program()), *options]
            done = program(command, cwd=self.folder, env=self.environment, stdin=block.source)
        else:
            assert block.language == "sh", f"{block}: nobody runs {block.language}"
            done = self._bash("-euo", "pipefail", "-c", block.source, check=False)
        if block.kind == "fails":
            assert done.returncode != 0, f"{block} does not fail"
            return done.stdout + done.stderr
        assert (done.returncode, done.stderr) == (0, ""), f"{block}: {done.stdout}{done.stderr}"
        return done.stdout

    def _bash(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = program(["bash", *arguments], cwd=self.folder, env=self.environment)
        assert not check or done.returncode == 0, done.stderr
        return done

    @contextlib.contextmanager
    def _running(self, block: Block) -> Generator[str]:
        """Run *block* until it is stopped as by Ctrl-C, and yield the first line it prints."""
        bash = shutil.which("bash")
        assert bash
        process = subprocess.Popen(
            [bash, "-c", f"exec {block.source}"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                dsn = process.stdout.readline().strip()
                for line in process.stderr:
                    if "ready: " in line:
                        break
                yield dsn
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, f"{block} ended with {process.returncode}"


def printed_as_promised(promised: str, printed: str) -> bool:
    """Compare as doctest does: `...` stands for anything; spaces at ends of lines do not count."""
    promised, printed = (
        "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())
        for text in (promised, printed)
    )
    return doctest.OutputChecker().check_output(promised, printed, doctest.ELLIPSIS)
