"""Sphinx's settings for the book: build.py gathers the pages and calls Sphinx with them."""

import importlib.util
import shutil
from pathlib import Path

project = "Low-Rank Prehab, reproduced"
author = copyright = ""
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["_build"]
language = "en"

# Outputs are those of the runs; nothing is executed here, and no script of another machine is asked for.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # of outputs: a report's tables
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"svg": {"scale": 0.93}}  # its letters as high as the text's
copybutton_selector = "div.cell_input pre, div.highlight-sh pre, div.highlight-python pre"

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["book.css"]
html_js_files = ["disk.js", "tables.js"]
templates_path = ["_templates"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_context = {"default_mode": "auto"}
html_sidebars = {"**": ["book-contents.html"]}
html_theme_options = {
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "logo": {"text": "Low-Rank Prehab"},
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["book-footer.html"],
    "footer_end": [],
    "back_to_top_button": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "search_bar_text": "Search the book",
}


def _copy_mathjax(app, error) -> None:
    """One file with all its glyphs; the package's own extension would copy 24 MB."""
    if error is None:
        package = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
        target = Path(app.outdir, "_static", "mathjax")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(package, "static", "mathjax", "tex-svg.js"), target)


def setup(app) -> None:
    app.connect("build-finished", _copy_mathjax)
