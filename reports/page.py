"""The report: figures and tables in order, as one self-contained HTML page, as Markdown, and as files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup
from tabulate import tabulate

from reports.analytic import rooflines
from reports.chapter import Chapter
from reports.cost import cost_chapter
from reports.curves import COLUMNS, settings
from reports.drawing import THEME
from scaling.errors import StoreError

if TYPE_CHECKING:
    from scaling.laws import Fit, Job


READER = "traces.html"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `write` puts on paper: `frame` the rows, `manifests` by the run's name.

    `traces`: the page on which they are read (`reports.reader`), None where the runs have none.
    """

    chapters: list[Chapter]
    frame: pd.DataFrame
    manifests: Mapping[str, Mapping[str, Any]]
    remarks: list[str]
    traces: str | None = None

    @property
    def title(self) -> str:
        return "What thinking costs" if self.traces is None else "What thinking costs and brings"

    @property
    def headline(self) -> list[str]:
        """The sentences of all settings, each setting named where there are several."""
        if not self.chapters:
            return ["The run has no rows yet; `scaling run --resume` goes on with it."]
        many = len(self.chapters) > 1
        return [
            f"{chapter.title}: {sentence}" if many else sentence
            for chapter in self.chapters
            for sentence in chapter.sentences
        ]

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """What the headlines say, one object a setting."""
        return [dict(chapter.numbers) for chapter in self.chapters]


def build(
    frame: pd.DataFrame,
    manifests: Mapping[str, Mapping[str, Any]],
    fits: Sequence[Fit],
    job: Job,
    remarks: Sequence[str] = (),
    studies: Sequence[Chapter] = (),
    traces: str | None = None,
) -> Report:
    """A report of rows (columns of `Row`, and `run`), their runs' manifests, their laws, remarks, and `studies`.

    The chapters of `studies` come first; `traces` is the page on which their traces are read.
    """
    found = settings(frame, fits, rooflines(manifests)) if len(frame) else []
    chapters = [*studies, *(cost_chapter(setting, job) for setting in found)]
    return Report(chapters, frame, manifests, list(remarks), traces)


def write(report: Report, out: Path) -> list[Path]:
    """Writes the page and what it is made of.

    `index.html`, `traces.html` if there are any, `report.md`, `rows.csv`, `figures/` (SVG for light and dark, PNG, CSV)
    and `tables/` (CSV). Returns the files, the page first. Raises `StoreError` if `out` cannot be written.
    """
    files: dict[str, str | bytes] = {
        "index.html": to_html(report),
        "report.md": to_markdown(report),
        "rows.csv": report.frame[["run", *COLUMNS]].to_csv(index=False),
    }
    if report.traces is not None:
        files[READER] = report.traces
    for section in (section for chapter in report.chapters for section in chapter.sections):
        for drawing in section.drawings:
            stem = f"figures/{drawing.name}"
            files |= {f"{stem}.svg": drawing.svg, f"{stem}-dark.svg": drawing.dark, f"{stem}.png": drawing.png}
            files[f"{stem}.csv"] = drawing.data.to_csv(index=False)
        for table in section.tables:
            files[f"tables/{table.name}.csv"] = table.data.to_csv(index=False)
    try:
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise StoreError(f"cannot write {error.filename or out}: {error.strerror or error}") from error
    return [out / name for name in files]


def to_html(report: Report) -> str:
    """The page; nothing in it is loaded from anywhere, and text from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": _data_uri, "safe_svg": Markup, "code": _code, "numeric": _numeric}
    return environment.get_template("page.html.j2").render(
        report=report,
        reader=READER,
        theme=THEME,
        fingerprints={name: _facts(manifest) for name, manifest in report.manifests.items()},
        raw={name: json.dumps(manifest, indent=2, sort_keys=True) for name, manifest in report.manifests.items()},
    )


def to_markdown(report: Report) -> str:
    """The same in GitHub's Markdown, with links to the figure files."""
    lines = [f"# {report.title}", "", *(f"- {_escape(sentence)}" for sentence in report.headline), ""]
    for chapter in report.chapters:
        lines += [f"## {_escape(chapter.title)}", ""]
        for section in chapter.sections:
            lines += [f"### {section.title}", ""]
            for text in section.text:
                lines += [_escape(text), ""]
            for drawing in section.drawings:
                light, dark = f"figures/{drawing.name}.svg", f"figures/{drawing.name}-dark.svg"
                source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                lines += [f'<picture>{source}<img alt="{drawing.title}" src="{light}"></picture>', ""]
                lines += [f"**{drawing.title}.** {_escape(drawing.caption)}", ""]
            for table in section.tables:
                cells = [[_escape(cell) for cell in row] for row in table.shown.to_numpy().tolist()]
                lines += [f"**{table.title}**", ""]
                if cells:
                    lines += [_grid([_escape(name) for name in table.shown.columns], cells), ""]
                lines += [_escape(table.caption), ""]
    if report.remarks:
        lines += ["## Remarks", "", *(f"- {_escape(remark)}" for remark in report.remarks), ""]
    lines += ["## Fingerprint", ""]
    for name, manifest in report.manifests.items():
        facts = [(_escape(key), _escape(value)) for key, value in _facts(manifest)]
        lines += [f"### {_escape(name)}", "", _grid(["", "value"], facts), ""]
    return "\n".join(lines)


def _facts(value: object, name: str = "") -> list[tuple[str, str]]:
    """A manifest as dotted names and values, in its own order; lists of records (the cells) only by their number."""
    if isinstance(value, Mapping):
        return [fact for key, item in value.items() for fact in _facts(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) for item in value):
            return [(name, f"{len(value)} entries")]
        return [(name, ", ".join(map(str, value)))]
    return [(name, "–" if value is None else str(value))]


def _grid(headings: list[str], cells: Sequence[Sequence[str]]) -> str:
    return tabulate(cells, headers=headings, tablefmt="github", disable_numparse=True)


def _data_uri(content: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"


def _numeric(shown: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers and are set flush right."""
    number = re.compile(r"−?[\d.,]+[kM]?|−?∞|–")
    return [all(number.fullmatch(cell) for cell in shown[name]) for name in shown]


def _escape(text: str) -> str:
    """Text from data as Markdown that shows it and does nothing else."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", text)


def _code(text: str) -> Markup:
    """Words between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(Markup.escape(text))))
