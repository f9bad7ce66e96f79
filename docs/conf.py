"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generated

import fishexp

project = "fishexp"
author = "The fishexp maintainers"
version = release = fishexp.__version__
html_title = f"fishexp {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

napoleon_custom_sections = [("Source", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
# docstrings name what is inside of the package too, of which these pages have no entry
nitpicky = False


def setup(app: Any) -> None:
    """Let pages that are made of the package itself be written when they are read."""
    app.connect("source-read", generated.fill)
