"""How Sphinx builds the documentation; `python -m nox -s docs` does it. Needs no network."""

from __future__ import annotations

import tomllib

from pathlib import Path


HERE = Path(__file__).parent
METADATA = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = METADATA["name"]
author = "the nursery_queue authors"
copyright = author  # noqa: A001  # Sphinx's name for it
release = METADATA["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # headings down to this level can be linked to
nitpicky = True
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
