"""Settings of the site that `build.py` makes."""

from pclseg import __version__

project = "pclseg"
copyright = "The pclseg authors, Apache-2.0"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"pclseg {release}"
html_show_sourcelink = False
suppress_warnings = ["toc.not_included"]  # tables that results.md links to
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a busy machine
autodoc_typehints = "description"
autodoc_member_order = "bysource"
