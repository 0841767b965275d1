"""The commands of the README and of docs/command-line.md, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from test_cli import ENVIRONMENT
from typer.testing import CliRunner

from gpusoftmax.cli.app import app

pytest.importorskip("matplotlib")  # of reports
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(text):
    """Return the lines of all console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_four_commands_of_the_readme_end_in_a_saved_evaluated_model_and_a_report(tmp_path):
    install, make, *lines = commands(section((ROOT / "README.md").read_text(), "From a CSV to a model"))
    extras = re.fullmatch(r"pip install '\.\[(.*)\]'", install).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert len([install, *lines]) == 4
    # The programs as an activated environment has them.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in {"python": "", "gpusoftmax": "-m gpusoftmax"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    subprocess.run(
        ["bash", "-euc", "\n".join([make, *lines])],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    assert {"wine.safetensors", "wine.html", "predictions.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 179


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, *lines = commands((ROOT / "docs" / "command-line.md").read_text())
    subprocess.run([sys.executable, *shlex.split(make)[1:]], check=True)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "gpusoftmax"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.stderr}"
    assert len(lines) >= 10


def test_the_page_names_every_command_and_every_suffix():
    from gpusoftmax.tables import FORMATS

    text = (ROOT / "docs" / "command-line.md").read_text()
    for command in app.registered_commands:
        assert f"`{command.callback.__name__} " in text or f"`{command.callback.__name__}`" in text
    for suffix in FORMATS:
        assert f"`{suffix}`" in text


def test_the_entry_point_is_there():
    module, name = PROJECT["scripts"]["gpusoftmax"].split(":")
    assert callable(getattr(import_module(module), name))
