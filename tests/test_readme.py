import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"guide.md": "onnx"}  # optional packages of a page's code, beside matplotlib


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


WITH_CODE = [page for page in PAGES if any(python_blocks(page.read_text()))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs(page, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    with plt.rc_context({"backend": "Agg"}):
        run_blocks(page.read_text(), str(page))
        plt.close("all")


def test_blocks_share_what_they_define():
    text = "Text\n```python\nx = 1\n```\n```console\nnot python\n```\n\n```python\ny = x + 1\n```\n"
    assert [line for line, _ in python_blocks(text)] == [3, 10]
    assert run_blocks(text, "page")["y"] == 2


def test_a_block_that_fails_fails_the_test_at_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("# Title\n\n```python\nx = 0\n1 / x\n```\n", "page")
    assert caught.traceback[-1].lineno + 1 == 5
