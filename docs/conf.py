"""The documentation's site: `make docs` builds it, from the repository's root, into docs/_build/html.

The source directory is the repository itself, so that the links its pages have on the web (to result tables, to
examples) are the links of the site.
"""

import sys
import warnings
from pathlib import Path

import torch

import dualview

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
torch.set_num_threads(1)
# Scripts show their warnings; where the builder's copy of the library lies is no part of them.
warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"

project = "dualview"
copyright = "the dualview developers"
release = version = dualview.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "built_site",
    "docstrings",
    "mathml",
    "reference",
    "repository",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/*.md", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [
    ".*", "**/__pycache__", "build", "dist", "runs", "src", "tests",
    "docs/_*", "docs/tutorials", "docs/how-to", "docs/gallery/**/*.py", "docs/gallery/**/*.ipynb",
]  # fmt: skip
nitpicky = True
# Nothing is fetched, so names of others lead nowhere and stay text; each of ours must lead somewhere.
nitpick_ignore_regex = [(r"py:.*", r"(?!dualview\b).*")]
default_role = "code"

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "dualview"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

sphinx_gallery_conf = {
    "examples_dirs": [str(HERE / "tutorials"), str(HERE / "how-to")],
    "gallery_dirs": [str(HERE / "gallery" / "tutorials"), str(HERE / "gallery" / "how-to")],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "gallery.ReadingOrder",
    "image_scrapers": ("figures.scraper",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib\.figure|dualview\.plotting",
    "default_thumb_file": str(HERE / "images" / "demo.png"),
    "abort_on_example_error": True,
    "backreferences_dir": None,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}
