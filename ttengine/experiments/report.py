"""The page of an experiment: tables, pictures and what the numbers depend on, in one file; several side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttengine.data.download import atomic_file
from ttengine.errors import DataError
from ttengine.experiments.run import Run
from ttengine.stages import read_json, write_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; }
main { display: flex; flex-wrap: wrap; gap: 3rem; align-items: flex-start; }
section { max-width: 56rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.missing { color: #a40000; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px; }
"""


@dataclass
class Table:
    """Columns and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Report:
    """What an experiment found."""

    title: str
    text: str
    tables: list[Table]
    pictures: list[str] = field(default_factory=list)
    """names of files in the folder"""
    checks: dict[str, bool] = field(default_factory=dict)
    """claim -> whether the numbers bear it out"""


def write_report(run: Run, report: Report) -> Path:
    """Write report.json, table.md and report.html into a run's folder; return the page."""
    document = {
        **run.about,
        "title": report.title,
        "text": report.text,
        "tables": [{"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
                   for t in report.tables],
        "pictures": report.pictures,
        "checks": report.checks,
        "missing": run.missing,
        "seconds": run.seconds,
    }  # fmt: skip
    write_json(run.out / "report.json", document)
    _write(run.out / "table.md", "\n\n".join(_markdown(table) for table in report.tables) + "\n")
    return write_page([run.out], run.out / "report.html")


def write_page(folders: Sequence[Path], out: Path) -> Path:
    """Write one page that shows several runs side by side; pictures lie in it, nothing is loaded from elsewhere.

    Raises:
        DataError: a folder holds no report.
    """
    sections = []
    for folder in folders:
        if not (folder / "report.json").is_file():
            raise DataError(f"{folder} holds no report.json; `ttengine experiment NAME --out {folder}` writes it")
        sections.append(_section(folder, read_json(folder / "report.json")))
    title = html.escape(" and ".join(folder.name for folder in folders))
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    _write(out, f"{page}<main>{''.join(sections)}</main>\n")
    return out


def _section(folder: Path, report: dict[str, Any]) -> str:
    parts = [f"<h1>{html.escape(report['title'])}</h1><p>{html.escape(report['text'])}</p>"]
    for name, why in report["missing"].items():
        parts.append(f"<p class=missing>missing: {html.escape(name)} ({html.escape(why)})</p>")
    for table in report["tables"]:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in table["columns"])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table["rows"]
        )
        parts.append(f"<h2>{html.escape(table['title'])}</h2><table><tr>{head}</tr>{body}</table>")
    for claim, holds in report["checks"].items():
        parts.append(f"<p>{'holds' if holds else '<b>does not hold</b>'}: {html.escape(claim)}</p>")
    for name in report["pictures"]:
        content = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{content}">')
    seconds = report.get("seconds", {})  # pages of earlier versions have none
    if seconds:
        lines = [f"{name}: {_duration(each)}" for name, each in [*seconds.items(), ("together", sum(seconds.values()))]]
        parts.append(f"<h2>Wall time of every arm</h2><pre>{html.escape(chr(10).join(lines))}</pre>")
    depends = {key: report[key] for key in ("experiment", "config", "versions", "models_of") if key in report}
    parts.append(f"<h2>What the numbers depend on</h2><pre>{html.escape(_lines(depends))}</pre>")
    return f"<section>{''.join(parts)}</section>"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:,.1f} min"


def _lines(value: Any, indent: str = "") -> str:
    """Nested settings, a line each."""
    if not isinstance(value, dict):
        return f" {value}"
    return "".join(f"\n{indent}{key}:{_lines(inner, indent + '  ')}" for key, inner in value.items())


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return f"{table.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
