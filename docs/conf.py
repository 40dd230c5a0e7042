"""The site: `sphinx-build -W docs OUT` writes it, without a connection."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from routing_gym import __version__

project = "routing_gym"
author = "The routing_gym maintainers"
copyright = f"2026, {author}"
release = version = __version__
html_title = f"routing_gym {version}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "site_pages"]
exclude_patterns = ["**/*.text.md", "examples", "results/records", "build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!routing_gym).*"),  # what other libraries document is not looked up
    ("py:class", r"routing_gym\.options\..*|routing_gym\.\w+\.\w+\..*"),  # bases and types without a page of their own
]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
# Tutorials are run while the site is built, so that what they print is what the library does.
nb_execution_mode = "force"
nb_execution_in_temp = True  # what they write is not left among the pages
nb_execution_timeout = 600  # a cell that hangs; on a loaded machine one of 20 seconds has taken two minutes
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # warnings of other libraries

smartquotes = False  # two hyphens are an option of a command
default_role = "code"  # of docstrings, which are written in Markdown's way
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
html_math_renderer = "mathml"
