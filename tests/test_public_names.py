"""`import gpusoftmax` imports nothing slow; its names are there when they are asked for."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import gpusoftmax

TREE = ast.parse(Path(gpusoftmax.__file__).read_text())


def test_type_checkers_see_the_names_where_they_are():
    (block,) = (node for node in TREE.body if isinstance(node, ast.If))
    seen = {name.asname: (node.module, name.name) for node in block.body for name in node.names}
    assert seen == {name: (f"gpusoftmax.{home}", name) for name, home in gpusoftmax._HOMES.items()}


@pytest.mark.parametrize("name", gpusoftmax.__all__)
def test_every_name_is_what_its_module_holds(name):
    thing = getattr(gpusoftmax, name)
    assert thing is getattr(sys.modules[f"gpusoftmax.{gpusoftmax._HOMES[name]}"], name)
    assert name in dir(gpusoftmax)


def test_version_and_unknown_names():
    assert gpusoftmax.__version__ == version("gpusoftmax")
    with pytest.raises(AttributeError, match="module 'gpusoftmax' has no attribute 'nothing'"):
        _ = gpusoftmax.nothing


def test_importing_the_package_imports_no_other():
    code = "import sys, gpusoftmax; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "sklearn", "typer", "rich"} & set(done.stdout.split())
