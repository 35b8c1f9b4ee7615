"""Configuration of Sphinx: `make docs` builds a site from Markdown files of the checkout and from docstrings."""

import importlib.metadata

project = "kasthuri_ray"
release = importlib.metadata.version("kasthuri_ray")
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
# The source folder is the root of the checkout, so that links between the pages work on a file server too.
root_doc = "docs/index"
include_patterns = ["docs/*.md", "cluster/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "outputs", "kasthuri_ray", "tests", "*.egg-info"]  # folders that are not searched

highlight_language = "text"  # of commands
myst_heading_anchors = 3
default_role = "code"  # of single backticks in docstrings
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "kasthuri_ray"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
