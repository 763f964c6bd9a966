"""The static book, built offline by `make site`: notebooks as executed, planner, glossary, interface."""

import vtc

project, author, copyright = "Visual tokens or parameters?", "", ""
release = version = vtc.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
nb_execution_mode = "off"  # shown as committed
myst_enable_extensions = ["deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg.js"  # our own copy: no request leaves the site
# formulae are read aloud from MathML; spoken text comes from a worker, which no file:// page may start
mathjax4_config = {
    "options": {
        "menuOptions": {
            "settings": {"assistiveMml": True, "speech": False, "braille": False, "enrich": False}
        }
    }
}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_static_path = ["static"]
html_extra_path = ["extra"]  # the planner page
html_show_sourcelink = False
html_copy_source = False
exclude_patterns = ["extra", "static"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
