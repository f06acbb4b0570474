"""A report that can be mailed: sections of text, charts and tables in one HTML file. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saetools.atomic import write_text
from saetools.dashboard.inline import asset, escaped, fill, inline_json, plotly_script, policy
from saetools.dashboard.panel import Panel

LONG = 80
"""A column with a cell of more characters is text: its lines are wrapped."""
_TEXT = ' class="sae-report-text"'
SCRIPTS = ("token.js", "bars.js", "feature.js", "report.js")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. A row of one cell is a heading within the table.

    Columns of a table without headings sort its rows, by the number that a cell begins with, else by its text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # below it


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order; `**words**` in a paragraph are bold."""

    title: str
    paragraphs: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = field(default=())


def report_page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], path: Path | str) -> None:
    """Write the page: 4.8 MB for plotly, and the numbers. RunError where it cannot be written; an old file stays."""
    scripts = [plotly_script(), *(asset(name) for name in SCRIPTS)]
    page = {"panels": [[panel.to_json() for panel in section.panels] for section in sections]}
    text = fill(
        asset("report.html"),
        policy=policy(scripts),
        title=escaped(title),
        facts="".join(f"<li>{escaped(name)} <b>{escaped(value)}</b></li>" for name, value in facts),
        contents="".join(f'<li><a href="#s{i}">{escaped(s.title)}</a></li>' for i, s in enumerate(sections)),
        style=asset("style.css") + asset("report.css"),
        sections="\n".join(_section(i, section) for i, section in enumerate(sections)),
        data=f'<script type="application/json" id="sae-report">{inline_json(page)}</script>',
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    write_text(Path(path), text)


def _section(number: int, section: Section) -> str:
    parts = [f"<h2>{escaped(section.title)}</h2>"]
    parts += [f"<p>{_bold(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.panels:
        parts.append(f'<div class="sae-report-charts" data-section="{number}"></div>')
    parts += [_table(table, section.title) for table in section.tables]
    return f'<section id="s{number}" class="sae-report-section">{"".join(parts)}</section>'


def _bold(text: str) -> str:
    """Escaped text, every second part between ** in bold."""
    parts = escaped(text).split("**")
    return "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))


def _table(table: Table, name: str) -> str:
    lines = [row for row in table.rows if len(row) > 1]
    long = [any(len(row[i]) > LONG for row in lines) for i in range(len(table.columns))]
    titles = zip(table.columns, long, strict=True)
    head = "".join(f'<th scope="col"{_TEXT if text else ""}>{escaped(title)}</th>' for title, text in titles)
    body = "".join(_row(row, len(table.columns), long) for row in table.rows)
    return (
        f'<div class="sae-report-table" tabindex="0" role="region" aria-label="{escaped(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f"<p>{_bold(table.note)}</p>" if table.note else "")
    )


def _row(row: tuple[str, ...], n_columns: int, long: Sequence[bool]) -> str:
    if len(row) == 1:
        return f'<tr class="sae-report-group"><th colspan="{n_columns}" scope="colgroup">{escaped(row[0])}</th></tr>'
    parts = zip(row[1:], long[1:], strict=True)
    cells = "".join(f"<td{_TEXT if text else ''}>{escaped(cell)}</td>" for cell, text in parts)
    return f'<tr><th scope="row">{escaped(row[0])}</th>{cells}</tr>'
