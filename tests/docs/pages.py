"""The blocks of code in a page of Markdown, each with what is to be done with it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

from pathlib import Path
from typing import Any

import attrs


ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")])
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
# These pages go on from the program of the README; their fragments are run after it, in order.
TOUR = [
    README,
    *(ROOT / "docs" / f"{name}.md" for name in ("handlers", "queues", "schedules", "production")),
]
# A comment right above a block, which readers do not see, says what is to be done with it.
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>\w+)(?: (?P<name>[^\s>]+))? -->\n)?"
    r"^```(?P<language>\w+)\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def name(page: Path) -> str:
    """Name *page* as a table of contents does."""
    return str(page.relative_to(ROOT / "docs").with_suffix(""))


@attrs.frozen(kw_only=True)
class Block:
    """One block; its kind is its mark, or else its language."""

    kind: str
    language: str
    name: str | None
    source: str
    page: Path
    line: int

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def code(self) -> Any:
        """The block, compiled so that tracebacks show its place in the page."""
        source = "\n" * (self.line - 1) + self.source
        return compile(source, self.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def blocks(page: Path, *kinds: str) -> list[Block]:
    """Return the blocks of *page* in their order: of these kinds, or all of them."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            kind=match["mark"] or match["language"],
            language=match["language"],
            name=match["name"],
            source=match["source"],
            page=page,
            line=text.count("\n", 0, match.start("source")) + 1,
        )
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if not kinds or block.kind in kinds]


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Return what a command prints; it must succeed and say nothing on stderr."""
    path = os.pathsep.join([str(ROOT), str(cwd)])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def passes(block: Block, server: str, folder: Path) -> None:
    """Run a block that is a test by pytest, on databases of *server*; it must pass."""
    (folder / "test_example.py").write_text(block.source, encoding="utf-8")
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    options = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]

    output = run(
        *(sys.executable, "-m", "pytest", *options, "-o", "trio_mode=true", "-q"),
        cwd=folder,
        NURSERY_QUEUE_TEST_DSN=server,
    )

    assert "1 passed" in output
