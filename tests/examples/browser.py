"""A real browser without a window, in a process of its own.

Playwright wants asyncio's own event loop, and a process that has imported trio-asyncio has
another one. So this file is also that process's program: it calls methods of a page by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys

from collections.abc import Generator
from typing import Any

import attrs


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
PATIENCE = 30_000  # milliseconds
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@attrs.frozen
class Page:
    """One page of the browser; for what the methods do, see Playwright."""

    _process: subprocess.Popen[str]

    def goto(self, url: str) -> None:
        self._call("goto", url)

    def reload(self) -> None:
        self._call("reload")

    def fill(self, selector: str, text: str) -> None:
        self._call("fill", selector, text)

    def click(self, selector: str) -> None:
        self._call("click", selector)

    def wait_for_function(self, script: str) -> None:
        self._call("wait_for_function", script)

    def text(self, selector: str) -> str:
        return str(self._call("text_content", selector))

    def _call(self, method: str, *args: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *args]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the browser has ended in {method}{args}"
        return json.loads(answer)


@contextlib.contextmanager
def opened() -> Generator[Page]:
    """Open a page for the time of the block."""
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Page(process)
        # The end of its stdin, which leaving the block closes, is the end of it.


def main() -> None:
    """Carry out calls, one a line, and answer each with a line."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  # not in the tests' process

    home: dict[str, str | float | bool] = {**os.environ}
    home["HOME"] = os.environ.get("TMPDIR", "/tmp")  # noqa: S108  # for what it notes about itself
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env=home)
        with contextlib.closing(browser):
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            for line in sys.stdin:
                method, *args = json.loads(line)
                answer = getattr(page, method)(*args)
                sys.stdout.write(json.dumps(answer if isinstance(answer, str) else None) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
