"""Settings of the documentation site; ``scripts/docs`` builds it.

The pages are Markdown that GitHub shows as well. What only one of both understands is translated here: figures for
light and dark, links out of this folder, and formulas, which become MathML, so that no page loads a script from
elsewhere. The API reference is written from what the package calls public.
"""

import enum
import inspect
import os
import re
import shutil
from functools import cached_property
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sklearn.base import BaseEstimator
from sphinx.util import logging

import gpusoftmax

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="(?P<dark>[^"]+)">\s*'
    r'<img alt="(?P<alt>[^"]*)" src="(?P<light>[^"]+)">\s*</picture>'
)
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<section>#[^)\s]*)?\)")
SHOWN_AS = {
    ROOT / "README.md": "index.md",
    ROOT / "bench/README.md": "benchmarks.md",
    ROOT / "CHANGELOG.md": "changelog.md",
}
MENDED = {  # what docutils writes: bars that stretch to the height of the line, an index below the letter with a tilde
    r'<mo class="mathopen">': r'<mo form="prefix" stretchy="false">',
    r"<mo>‖</mo>": r'<mo form="postfix" stretchy="false">‖</mo>',
    r"<munderover>\s*(<mi>.</mi>)\s*(<mi>.</mi>)\s*(<mo[^>]*>~</mo>)\s*</munderover>": (
        r'<msub><mover accent="true">\1\3</mover>\2</msub>'
    ),
}
MODULES = ["plots"]  # whose functions are public beside what `gpusoftmax.__all__` names

project = "gpusoftmax"
author = "gpusoftmax developers"
copyright = "gpusoftmax developers, BSD-3-Clause"  # noqa: A001 (Sphinx's name for it)
release = version = gpusoftmax.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
exclude_patterns = ["_build"]
templates_path = ["_site"]
nitpicky = True
toc_object_entries_show_parents = "hide"
default_role = "autolink"  # `sweep` in a docstring links to it, `tol` is only set apart

myst_enable_extensions = ["attrs_inline", "dollarmath"]
myst_heading_anchors = 3  # GitHub's names for sections, by which pages link to them

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have shapes and dtypes
numpydoc_show_class_members = False  # the page of a class documents them

html_theme = "pydata_sphinx_theme"
html_title = "gpusoftmax"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_sidebars = {"**": ["all-pages.html"]}
html_theme_options = {
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 1,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def setup(app):
    """Register the translations."""
    app.connect("config-inited", write_api_reference)  # before Sphinx lists the pages
    app.connect("source-read", lambda app, page, text: translate(text, Path(app.env.doc2path(page)), page))
    app.connect("include-read", lambda app, path, page, text: translate(text, FOLDER / path, page))
    app.connect("autodoc-skip-member", is_inherited_from_elsewhere)
    app.connect("autodoc-process-docstring", list_members)
    app.connect("autodoc-process-signature", without_private_parameters)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))


def translate(text: list[str], path: Path, page: str) -> None:
    """Rewrite figures and links of a Markdown file for the page of the site that shows it."""

    def lead(link: re.Match) -> str:
        target = path.parent / link["target"]
        if not target.exists():  # no link, but code that looks like one
            return link[0]
        if target.is_dir():
            return link["text"]  # GitHub lists a folder; the site has none
        target = FOLDER / SHOWN_AS.get(target.resolve(), target)
        return f"[{link['text']}]({os.path.relpath(target, (FOLDER / page).parent)}{link['section'] or ''})"

    if path.suffix == ".md":
        text[0] = PICTURE.sub(r"![\g<alt>](\g<light>){.only-light}\n![\g<alt>](\g<dark>){.only-dark}", text[0])
        text[0] = LINK.sub(lead, text[0])


def write_math(writer, node) -> None:
    """Write a formula as MathML."""
    try:
        formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
    else:
        for written, mended in MENDED.items():
            formula = re.sub(written, mended, formula)
        writer.body.append(formula)
    raise nodes.SkipNode


def write_api_reference(app, config) -> None:
    """Write api/index.rst: a table for each kind of public name."""
    kinds: dict[str, list[str]] = {"Estimators": [], "Functions": [], "Other classes": [], "Errors and warnings": []}
    for name in gpusoftmax.__all__:
        kinds[kind_of(getattr(gpusoftmax, name))].append(name)
    for name in MODULES:
        kinds[name.capitalize()] = [
            f"{name}.{function}" for function in functions_of(import_module(f"gpusoftmax.{name}"))
        ]
    lines = ["API reference", "=============", "", ".. currentmodule:: gpusoftmax", ""]
    for kind, names in kinds.items():
        table = [".. autosummary::", "   :toctree: .", "   :nosignatures:", "", *(f"   {name}" for name in names)]
        lines += [kind, "-" * len(kind), "", *table, ""]
    shutil.rmtree(FOLDER / "api", ignore_errors=True)  # with pages of names that are no more
    (FOLDER / "api").mkdir()
    (FOLDER / "api/index.rst").write_text("\n".join(lines))


def functions_of(module) -> list[str]:
    """Return the names of a module's public functions: those of `__all__`, else all that it defines."""
    defined = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    return list(getattr(module, "__all__", defined))


def kind_of(public) -> str:
    """Return the heading under which the reference lists a public object."""
    if not inspect.isclass(public):
        return "Functions"
    if issubclass(public, BaseEstimator):
        return "Estimators"
    return "Errors and warnings" if issubclass(public, Exception) else "Other classes"


def is_inherited_from_elsewhere(app, what, name, member, is_skipped, options) -> bool | None:
    """Leave out what other packages document."""
    owner = member.func if isinstance(member, cached_property) else getattr(member, "__objclass__", member)
    return None if str(getattr(owner, "__module__", "gpusoftmax")).startswith("gpusoftmax") else True


def list_members(app, what, name, documented, options, lines) -> None:
    """Say what each member of an enumeration means."""
    if what == "class" and issubclass(documented, enum.Enum):
        lines += ["", *(f"* ``{member.name}``: {member.sentence}" for member in documented), ""]


def without_private_parameters(app, what, name, member, options, signature, returned):
    """Leave out the signature of records that only the package makes."""
    return ("", returned) if what == "class" and "_" in re.findall(r"\W(_)", signature or "") else None
