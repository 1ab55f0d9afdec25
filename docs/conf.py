"""Sphinx settings of the site: `make docs` builds it into out/docs, and every warning is an error.

Pages are Markdown (MyST). Notebooks are shown with their stored outputs; the build runs no code. Reference entries are
written by from_source.py. A page loads nothing from another host.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import workbench

project = "workbench"
author = "the authors of workbench"
project_copyright = "the authors of workbench, Apache-2.0"
release = version = workbench.__version__

extensions = ["myst_nb", "from_source"]
exclude_patterns = ["notebooks/*.py", "notebooks/out", "**/.*", "figures/out"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # otherwise myst-nb fetches them from a CDN
# Prefer the snapshot of a view and the image of a figure.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None), ("html", "image/png", 20)]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # quotation marks in record="attention" must stay straight

html_theme = "furo"
html_title = "workbench"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which browsers refuse for local files
python_maximum_signature_line_length = 88
pygments_style = "friendly"
pygments_dark_style = "native"
