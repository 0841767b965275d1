"""The readable page of a check: one table a section."""

from collections.abc import Iterable
from typing import Any

from bench.gpu_check.base import Row

EMULATED = "**Emulated: CuPy was the stand-in of the tests. Answers are checked; no time was measured.**\n\n"


def page(report: dict[str, Any]) -> str:
    """Return the report of `__main__` as Markdown."""
    sections = report["sections"]
    overview = [{"section": name, "status": section["status"], "what it does": section["settles"],
                 "error": section["error"]} for name, section in sections.items()]  # fmt: skip
    text = f"# GPU check, {report['started']}, commit {report['commit'] or 'unknown'}\n\n"
    text += EMULATED if report["emulated"] else ""
    text += "\n".join(table(overview)) + "\n"
    for name, section in sections.items():
        text += f"\n## {name}\n\n" + "\n".join(table(section["rows"])) + "\n" if section["rows"] else ""
    return text


def table(rows: list[Row]) -> Iterable[str]:
    """Yield the lines of a table with every key of any row as a column, empty ones left out."""
    columns = [
        key for key in dict.fromkeys(key for row in rows for key in row) if any(_cell(row.get(key)) for row in rows)
    ]
    yield _line(columns)
    yield _line("---" for _ in columns)
    for row in rows:
        yield _line(_cell(row.get(column)) for column in columns)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", "<br>")
