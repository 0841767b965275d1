"""What the pages promise: docstrings that read as numpydoc, links that lead somewhere, tables that are complete."""

import builtins
import inspect
import pydoc
import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import sklearn.exceptions
from sklearn.linear_model import LogisticRegression

import gpusoftmax

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = ["plots"]  # whose functions are public beside what `gpusoftmax.__all__` names
LEFT_OUT = {  # of numpydoc's checks
    "ES01": "a summary can say it all",
    "EX01": "an example where one helps",
    "SA01": "names in the text are links",
    "PR03": "parameters that are explained together stand together",
    "PR07": "a type can say it all",
    "RT02": "results have names",
    "RT03": "and so need no more",
}
ONE_LINE = {"PR01", "RT01", "YD01"}  # asked only of docstrings that have sections


def public_names():
    """Yield the dotted names of the package's own public classes, their methods, and functions."""
    public = [getattr(gpusoftmax, name) for name in gpusoftmax.__all__]
    for module in (import_module(f"gpusoftmax.{name}") for name in MODULES):
        public += [f for name, f in vars(module).items() if inspect.isfunction(f) and not name.startswith("_")]
    for each in public:
        if not getattr(each, "__module__", "").startswith("gpusoftmax"):
            continue
        name = f"{each.__module__}.{each.__qualname__}"
        yield name
        if inspect.isclass(each):
            for member, value in vars(each).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    yield f"{name}.{member}"


def faults(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    report = validate(name)
    has_sections = "\n---" in report["docstring"]
    return [
        (code, message)
        for code, message in report["errors"]
        if code not in LEFT_OUT
        and (has_sections or code not in ONE_LINE)
        and not (code == "PR01" and re.fullmatch(r"Parameters \{('_\w+'(, )?)+\} not documented", message))
    ]


@pytest.mark.parametrize("name", sorted(set(public_names())))
def test_public_docstrings_are_numpydoc(name):
    assert faults(name) == []


def test_errors_that_docstrings_name_are_public():
    docstrings = [pydoc.locate(name).__doc__ or "" for name in public_names()]
    named = {word for text in docstrings for word in re.findall(r"\b[A-Z]\w+(?:Error|Warning)\b", text)}
    assert len(named) >= 10
    assert named <= {*vars(builtins), *vars(sklearn.exceptions), *gpusoftmax.__all__}


def undocumented(x):
    """Return x.

    Parameters
    ----------
    y : int
    """
    return x


def test_a_docstring_that_is_not_numpydoc_is_found(monkeypatch):
    monkeypatch.setattr(gpusoftmax, "undocumented", undocumented, raising=False)
    assert {code for code, _ in faults("gpusoftmax.undocumented")} == {"PR01", "PR02", "RT01"}


def links(text):
    """Return the targets of Markdown links and of images in HTML that are no addresses, without their sections."""
    found = re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", text) + re.findall(r'(?:src|srcset)="([^":]+)"', text)
    return {target for target in found if not target.startswith("http")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    code = re.compile(r"^```.*?^```|`[^`\n]*`", flags=re.MULTILINE | re.DOTALL)
    targets = links(code.sub(lambda match: "" if match[0].startswith("```") else "code", page.read_text()))
    assert [target for target in sorted(targets) if not (page.parent / target).exists()] == []


def rows(text, heading):
    """Return the cells of the table below a heading, the head left out."""
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_table_of_parameters_names_all_of_both_libraries():
    table = rows((ROOT / "docs/migration.md").read_text(), "Parameters")
    named = {name for first, *_ in table for name in re.findall(r"`(\w+)`", first)}
    theirs, ours = (set(library().get_params()) for library in (LogisticRegression, gpusoftmax.SoftmaxRegression))
    assert named == theirs | ours
    for first, their_cell, our_cell in table:
        for name in re.findall(r"`(\w+)`", first):
            assert (name in theirs) == (their_cell != "–"), name
            assert (name in ours) == (not our_cell.startswith("none")), name


def test_the_table_of_attributes_names_those_of_a_fitted_model():
    table = rows((ROOT / "docs/migration.md").read_text(), "Attributes")
    named = {name for first, *_ in table for name in re.findall(r"`(\w+_)`", first)}
    fitted = vars(gpusoftmax.SoftmaxRegression().fit([[0.0], [1.0]], [0, 1]))
    assert {name for name in fitted if name.endswith("_") and not name.startswith("_")} <= named


def test_the_table_of_packages_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {name_of(requirement): "always" for requirement in project["dependencies"]}
    for extra, requirements in project["optional-dependencies"].items():
        wanted |= dict.fromkeys(map(name_of, requirements), f"`{extra}`")
    table = {}
    for packages, _, comes_with in rows((ROOT / "docs/installation.md").read_text(), "What is installed"):
        names = packages.split(", ")
        extras = comes_with.split(", ")
        table |= dict(zip(names, extras if len(extras) == len(names) else extras * len(names), strict=True))
    assert table == wanted


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("sphinx")
    return runpy.run_path(str(ROOT / "docs/conf.py"))


def test_the_reference_lists_what_is_checked_here(conf):
    assert conf["MODULES"] == MODULES


def test_pages_are_translated_for_the_site(conf):
    def translated(text, path, page):
        text = [text]
        conf["translate"](text, ROOT / path, page)
        return text[0]

    assert translated("[a](../bench/README.md#fit)", "docs/guide.md", "guide") == "[a](benchmarks.md#fit)"
    assert translated("[a](../tests)", "docs/guide.md", "guide") == "a"
    assert translated("[a](../guide.md)", "docs/verification/README.md", "verification/README") == "[a](../guide.md)"
    assert translated("[a](cases.py)", "bench/README.md", "benchmarks") == "[a](../bench/cases.py)"
    assert translated("f[a](b) [a](https://b.c/d)", "docs/guide.md", "guide") == "f[a](b) [a](https://b.c/d)"


def test_no_figure_of_a_page_is_left_as_html(conf):
    for page in PAGES:
        text = [page.read_text()]
        n_figures = text[0].count("<picture>")
        conf["translate"](text, page, "index")
        assert "<picture>" not in text[0]
        assert text[0].count("{.only-dark}") == text[0].count("{.only-light}") == n_figures
