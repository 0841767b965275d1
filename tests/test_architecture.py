"""Imports go downhill: a file imports only from rooms below its own, as DESIGN §5 orders them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpusoftmax"
OPTIONAL = {"cupy", "cupyx", "distributed", "jinja2", "matplotlib", "onnx", "pandas", "polars", "pyarrow"}

ORDER = [  # from the bottom; a file may import from every line above its own, from no other
    "exceptions",
    "arrays",
    "kernels.reference",
    "plan",  # pure arithmetic
    "plan_many",
    "sources",
    "targets",
    "kernels.curvature",
    "kernels.scores",
    "kernels.independent",
    "kernels.workspace",
    "kernels.cpu",
    "backends.base",
    "kernels.launches",
    "kernels.cuda",
    "plan_cuda",
    "backends.cpu",
    "backends.cuda",
    "backends.choice",
    "penalties",
    "preconditioner",
    "row_space",
    "objective",
    "independent_metric",
    "independent",
    "solvers.base",
    "solvers.line_search",
    "solvers.pairs",
    "solvers.lbfgs",
    "solvers.ladder",
    "solvers.continuation",
    "frames",
    "callbacks",
    "progress_bar",
    "training",
    "independent_row_space",
    "plan_sweep",
    "problems",
    "interop",
    "encoding",
    "estimator",
    "many_data",
    "many",
    "functional",
    "sweep_result",
    "sweeps",
    "cross_validation",
    "atomic_file",
    "model_file",
    "persistence",
    "exports",
    "held_out",
    "early_stopping",
    "calibration",
    "evaluation",
    "plots.style",
    "plots.regularization",
    "plots.histories",
    "plots.reliability",
    "plots.confusion",
    "plots.coefficients",
    "plots.inline",
    "report",
    "scaling",
    "columns",
    "tables",
    "cli.terminal",
    "cli.options",
    "cli.outputs",
    "cli.matching",
    "cli.request",
    "cli.judging",
    "cli.fitting",
    "cli.predicting",
    "cli.informing",
    "cli.benching",
    "cli.app",
    "__main__",
]
INDEPENDENT = {  # rooms that import only errors and `arrays`: they receive what they need
    "solvers": "algorithms know nothing of data, devices or softmax",
    "plan": "arithmetic",
    "sources": "data in memory",
    "targets": "data in memory",
    "penalties": "mathematics",
    "preconditioner": "mathematics",
    "independent_metric": "mathematics",
    "kernels.reference": "the specification",
    "kernels.launches": "arithmetic",
    "columns": "data in files",
}


def modules():
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree):
    """Yield the dotted name of every module that a syntax tree imports; of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree, known):
    """Return the modules of this package that a syntax tree imports."""
    inside = {name.removeprefix("gpusoftmax.") for name in imports(tree) if name.startswith("gpusoftmax.")}
    return inside & known


def uphill(name, imported, order):
    return [other for other in sorted(imported) if order.index(other) >= order.index(name)]


def test_every_module_has_its_place():
    leaves = {name for name, path in modules().items() if path.name != "__init__.py"}
    assert leaves == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_downhill(name):
    tree = ast.parse(modules()[name].read_text())
    assert uphill(name, own_imports(tree, set(ORDER)), ORDER) == []


@pytest.mark.parametrize("room", INDEPENDENT)
def test_independent_rooms_import_nothing_else_of_the_package(room):
    for name, path in modules().items():
        if name == room or name.startswith(f"{room}."):
            foreign = {
                other
                for other in own_imports(ast.parse(path.read_text()), set(ORDER))
                if other != room and not other.startswith(f"{room}.")
            }
            assert foreign <= {"exceptions", "arrays"}


@pytest.mark.parametrize("room", ["cli", "kernels", "solvers"])
def test_rooms_open_no_doors_of_their_own(room):
    # An __init__ that imports would make every file of its room import all the others.
    assert list(imports(ast.parse((PACKAGE / room / "__init__.py").read_text()))) == []


def test_nobody_imports_the_package_itself():
    for name, path in modules().items():
        for imported in imports(ast.parse(path.read_text())):
            assert imported != "gpusoftmax", f"{name or '__init__'} imports the package as a whole"


def test_optional_packages_are_imported_inside_functions():
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside:
                roots = {imported.split(".")[0] for imported in imports(node)}
                assert not roots & OPTIONAL, f"{name} imports {roots & OPTIONAL} at module level"


def test_the_package_works_where_optional_packages_are_missing():
    # scikit-learn may import some that are installed; with None in their place, every import of them fails.
    code = f"""
import sys
for name in {sorted(OPTIONAL)!r}:
    sys.modules[name] = None
import gpusoftmax
clf = gpusoftmax.SoftmaxRegression().fit([[0.0], [1.0], [2.0]], [0, 1, 1])
assert clf.predict([[2.0]]) == [1]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_sees_what_runs_uphill():
    tree = ast.parse(
        "from gpusoftmax.kernels import cpu\nimport gpusoftmax.plan\nfrom gpusoftmax.training import train"
    )
    found = own_imports(tree, set(ORDER))
    assert found == {"kernels.cpu", "plan", "training"}
    assert uphill("objective", found, ORDER) == ["training"]
    assert uphill("training", found, ORDER) == ["training"]
    nested = ast.parse("def f():\n    from gpusoftmax import estimator")
    assert own_imports(nested, set(ORDER)) == {"estimator"}
