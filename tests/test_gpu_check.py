"""The check for GPU machines runs through, on the stand-in for CuPy: no GPU is at hand when it changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import toolchain

from bench.gpu_check import answers
from bench.gpu_check.__main__ import SECTIONS, attempt, main, slug
from bench.gpu_check.base import Run, compare
from bench.gpu_check.page import table
from gpusoftmax.kernels import reference

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu-check"
needs_nvrtc = pytest.mark.skipif(toolchain.why_missing() is not None, reason=str(toolchain.why_missing()))


def run(folder, *arguments):
    """Return the exit status and the report of a tiny run on the stand-in."""
    status = main(["--tiny", "--emulated", "--out", str(folder), *arguments])
    return status, json.loads((folder / "gpu-check.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu-check")
    status, report = run(folder)
    return status, report, (folder / "gpu-check.md").read_text()


def figures(value, name=""):
    """Yield every number of a report, with the name it has."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


@needs_nvrtc
class TestWhole:
    def test_every_section_runs_and_nothing_is_wrong(self, whole):
        status, report, _ = whole
        assert list(report["sections"]) == [section.__name__ for section in SECTIONS]
        for name, section in report["sections"].items():
            assert section["status"] in ("passed", "skipped"), (name, section["error"])
            assert section["rows"], name
            assert section["settles"], name
        assert status == 0

    def test_no_time_of_the_emulator_is_given_as_one(self, whole):
        _, report, page = whole
        assert report["emulated"] is True
        assert "no time was measured" in page
        timed = {name for name, _ in figures(report["sections"]) if "second" in name or name.endswith("/s")}
        assert timed <= {"modelled_seconds", "bytes_per_second"}  # of a plan, of the facts
        assert "reached" not in {name for name, _ in figures(report["sections"])}

    def test_the_page_has_every_section(self, whole):
        _, report, page = whole
        for name in report["sections"]:
            assert f"\n## {name}\n" in page
            assert f"\n| {name} | " in page

    def test_every_kernel_both_designs_and_every_way_to_fit_are_checked(self, whole):
        sections = whole[1]["sections"]
        kernels = {row["kernel"] for row in sections["kernels"]["rows"]}
        assert kernels == {"residual", "fused_small", "column_sums", "pad_classes, unpad_classes"}
        assert {row["what"] for row in sections["fits"]["rows"]} == {"fit", "sweep", "fit_many"}
        assert {"two products", "one kernel"} <= {row["design"] for row in sections["plans"]["rows"]}
        assert any("test_same_answer" in row["files"] for row in sections["tests"]["rows"])


@needs_nvrtc
def test_a_section_that_fails_is_recorded_and_the_others_run(tmp_path, monkeypatch):
    honest = reference.residual
    monkeypatch.setattr(reference, "residual", lambda *args: (honest(*args)[0] * 1.001, honest(*args)[1]))
    monkeypatch.setattr(answers, "gemm", None)
    status, report = run(tmp_path, "--sections", "kernels", "products", "machine")
    sections = report["sections"]
    assert status == 1
    assert [sections[name]["status"] for name in ("machine", "kernels", "products")] == ["passed", "failed", "failed"]
    assert "rows are wrong" in sections["kernels"]["error"]
    assert "TypeError" in sections["products"]["error"]


def explodes(run):
    """Raise."""
    raise FloatingPointError("too hot")


def dies(run):
    """End the process, as an illegal access would end all CUDA work in it."""
    os._exit(3)


@pytest.mark.parametrize(("section", "error"), [(explodes, "FloatingPointError: too hot"), (dies, "exit code 3")])
def test_on_a_gpu_a_section_has_a_process_of_its_own(section, error, tmp_path):
    outcome = attempt(section, Run(tmp_path))
    assert outcome["status"] == "failed"
    assert error in outcome["error"]
    assert outcome["seconds"] > 0


def test_without_a_gpu_it_says_so_in_one_sentence():
    environment = os.environ | {"GPU_CHECK_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/gpu-check needs a CUDA GPU: device='cuda'")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_compare_is_relative_and_sees_what_is_not_a_number():
    assert compare(np.array([1.0, 2.0]), np.array([1.0, 2.002]), 1.1e-3)["is_right"]
    assert not compare(np.array([1.0, 2.0]), np.array([1.0, 2.002]), 0.9e-3)["is_right"]
    assert not compare(np.array([1.0, np.nan]), np.array([1.0, 2.0]), 0.1)["is_right"]


def test_tables_have_every_column_and_no_stray_bars():
    lines = list(table([{"a": 1, "b": None}, {"c": "x|y\nz", "a": 0.123456}, {"d": False}]))
    assert lines[0] == "| a | c | d |"
    assert lines[2:] == ["| 1 |  |  |", "| 0.1235 | x\\|y<br>z |  |", "|  |  | no |"]


def test_slug():
    assert slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
