import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
GUIDE = README.with_name("docs") / "guide.md"
PROBES = README.with_name("docs") / "linear-probe.md"


def python_blocks(text):
    """Yield the line number and the code of every block that is marked as Python."""
    for match in re.finditer(r"^```python[^\n]*\n(.*?)^```\s*$", text, flags=re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)) + 1, match.group(1)


def run_blocks(text, name):
    """Execute all blocks in one namespace; tracebacks show the lines of the page."""
    namespace = {"__name__": "__main__"}
    for line, code in python_blocks(text):
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
    return namespace


def test_every_python_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_blocks(README.read_text(), str(README))


def test_every_python_block_of_the_guide_to_linear_probes_runs(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    with plt.rc_context({"backend": "Agg"}):
        run_blocks(PROBES.read_text(), str(PROBES))
        plt.close("all")
    assert (tmp_path / "path.svg").exists()


def test_every_python_block_of_the_guide_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    with plt.rc_context({"backend": "Agg"}):
        run_blocks(GUIDE.read_text(), str(GUIDE))
        plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {"spam.safetensors", "spam.onnx", "report.html"}


def test_blocks_share_what_they_define():
    text = "Text\n```python\nx = 1\n```\n```console\nnot python\n```\n\n```python\ny = x + 1\n```\n"
    assert [line for line, _ in python_blocks(text)] == [3, 10]
    assert run_blocks(text, "page")["y"] == 2


def test_a_block_that_fails_fails_the_test_at_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("# Title\n\n```python\nx = 0\n1 / x\n```\n", "page")
    assert caught.traceback[-1].lineno + 1 == 5
