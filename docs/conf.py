"""How Sphinx builds the documentation; `python -m nox -s docs` does it. Needs no network.

Diagrams are text (Mermaid), drawn by the reader's browser with a script from a public server.
"""

from __future__ import annotations

import sys
import tomllib

from pathlib import Path


HERE = Path(__file__).parent
METADATA = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.path.insert(0, str(HERE))

project = METADATA["name"]
author = "the nursery_queue authors"
copyright = author  # noqa: A001  # Sphinx's name for it
release = METADATA["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
    "_public_names",
]
myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3  # headings down to this level can be linked to
nitpicky = True
exclude_patterns = ["_build"]

# The reference is made of signatures and docstrings, whose single backticks mean code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
