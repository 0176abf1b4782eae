"""The site's settings: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

import fastndsm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "fastndsm"
author = "the fastndsm developers"
version = release = fastndsm.__version__

extensions = ["docstrings", "formulas", "myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_math_renderer = "mathml"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # tqdm says there that it would rather have widgets

default_role = "code"
smartquotes = False  # options begin with two hyphens
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_inherit_docstrings = False  # torch's are for torch's pages
nitpicky = True  # what belongs to other packages, and what is private here, has no page to link to
ELSEWHERE = (
    "argparse collections concurrent contextlib diffusers filelock huggingface_hub lightning nn np numpy os pandas "
    "pathlib pytorch_lightning scipy sklearn torch torchmetrics types typing"
)
INSIDE = "dynamics functional flow latent linear process reference.drift selection"
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(ELSEWHERE.split())})\..*|Tensor|Callable"),
    ("py:.*", r"fastndsm\.(\w+\.)*_\w+.*"),
    ("py:.*", rf"fastndsm\.({'|'.join(INSIDE.split())})\.\w+"),
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"fastndsm {release}"
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
