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

from reports import figures, tables
from reports.analytic import rooflines
from reports.costs import phase_costs
from reports.curves import COLUMNS, Setting, settings
from reports.drawing import THEME, Drawing
from reports.figures import PHASE_NAMES
from reports.headline import Headline, headline
from reports.tables import Table
from scaling.errors import StoreError

if TYPE_CHECKING:
    from scaling.laws import Fit, Job


@dataclass(frozen=True, slots=True)
class Section:
    """One heading with what stands below it."""

    anchor: str
    title: str
    text: list[str]
    drawings: list[Drawing]
    tables: list[Table]


@dataclass(frozen=True, slots=True)
class Chapter:
    """One setting's headline and sections."""

    setting: Setting
    headline: Headline
    sections: list[Section]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `write` puts on paper: `frame` the rows, `manifests` by the run's name."""

    chapters: list[Chapter]
    frame: pd.DataFrame
    manifests: Mapping[str, Mapping[str, Any]]
    remarks: list[str]

    @property
    def headline(self) -> list[str]:
        """The sentences of all settings, each setting named where there are several."""
        if not self.chapters:
            return ["The run has no rows yet; `scaling run --resume` goes on with it."]
        many = len(self.chapters) > 1
        return [
            f"{chapter.setting.label}: {sentence}" if many else sentence
            for chapter in self.chapters
            for sentence in chapter.headline.sentences
        ]

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """What the headlines say, one object a setting."""
        return [chapter.headline.numbers for chapter in self.chapters]


def build(
    frame: pd.DataFrame,
    manifests: Mapping[str, Mapping[str, Any]],
    fits: Sequence[Fit],
    job: Job,
    remarks: Sequence[str] = (),
) -> Report:
    """A report of rows (columns of `Row`, and `run`), their runs' manifests, their laws, and remarks."""
    found = settings(frame, fits, rooflines(manifests)) if len(frame) else []
    chapters = [Chapter(setting, headline(setting, job), _sections(setting, job)) for setting in found]
    return Report(chapters, frame, manifests, list(remarks))


def write(report: Report, out: Path) -> list[Path]:
    """Writes `index.html`, `report.md`, `rows.csv`, `figures/` (SVG for light and dark, PNG, CSV) and `tables/` (CSV).

    Returns the files, the page first. Raises `StoreError` if `out` cannot be written.
    """
    files: dict[str, str | bytes] = {
        "index.html": to_html(report),
        "report.md": to_markdown(report),
        "rows.csv": report.frame[["run", *COLUMNS]].to_csv(index=False),
    }
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
        theme=THEME,
        fingerprints={name: _facts(manifest) for name, manifest in report.manifests.items()},
        raw={name: json.dumps(manifest, indent=2, sort_keys=True) for name, manifest in report.manifests.items()},
    )


def to_markdown(report: Report) -> str:
    """The same in GitHub's Markdown, with links to the figure files."""
    lines = ["# What thinking costs", "", *(f"- {_escape(sentence)}" for sentence in report.headline), ""]
    for chapter in report.chapters:
        lines += [f"## {_escape(chapter.setting.label)}", ""]
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
                    lines += [_grid(list(table.shown.columns), cells), ""]
                lines += [_escape(table.caption), ""]
    if report.remarks:
        lines += ["## Remarks", "", *(f"- {_escape(remark)}" for remark in report.remarks), ""]
    lines += ["## Fingerprint", ""]
    for name, manifest in report.manifests.items():
        facts = [(_escape(key), _escape(value)) for key, value in _facts(manifest)]
        lines += [f"### {_escape(name)}", "", _grid(["", "value"], facts), ""]
    return "\n".join(lines)


def _sections(setting: Setting, job: Job) -> list[Section]:
    """All sections of a setting; those without anything to show are left out, validity never is."""
    prefix = f"{setting.slug}-" if setting.slug else ""
    main = setting.phases[0] if setting.phases else "rollout"
    found: list[Section] = []

    def section(anchor: str, title: str, shown: Sequence[Drawing | Table | None], text: Sequence[str] = ()) -> None:
        drawings = [item for item in shown if isinstance(item, Drawing)]
        kept = [_named(item, prefix) for item in shown if isinstance(item, Table)]
        if drawings or kept or text:
            found.append(Section(prefix + anchor, title, list(text), drawings, kept))

    if setting.phases:
        section(
            "cost",
            "Cost by thinking length",
            [figures.cost(setting, main), figures.cost(setting, main, log=False), tables.costs(setting)],
        )
        compared = tables.ratio(setting)
        section(
            "ratio",
            "Ratio and bend",
            [figures.ratio(setting, main), figures.curvature(setting), compared if len(compared.data) else None],
        )
        law_table = tables.laws(setting)
        warnings = [
            f"{variant.label}, {fit.curve['phase']}, {fit.curve['method']}: {warning}."
            for variant in setting.variants
            for phase in setting.phases
            for fit in setting.laws(variant, phase)
            for warning in fit.warnings
        ]
        section("laws", "Laws", [law_table if len(law_table.data) else None], warnings)
        section("months", "Months of the job", [tables.months(setting, job)])
        others = [figures.cost(setting, phase) for phase in setting.phases[1:]]
        table = tables.by_phase(setting) if others else None
        section(
            "phases", "Cost by phase", [figures.phases(setting, phase_costs(setting)), *others, table], _phases(setting)
        )
        section(
            "speed",
            "Throughput and memory",
            [figures.throughput(setting), figures.kv_memory(setting), figures.peak_memory(setting)],
        )
        methods = tables.agreements(setting)
        section("agreement", "Full against profile", [methods if len(methods.data) else None])
    section("validity", "Validity", [tables.failures(setting)])
    return found


def _phases(setting: Setting) -> list[str]:
    """What was measured of a training step, beside what a table by length can hold."""
    said = [] if setting.phases[1:] else [f"Only one phase has usable times: {PHASE_NAMES[setting.phases[0]]}."]
    sync = setting.rows[(setting.rows["phase"] == "sync") & (setting.rows["status"] == "ok")]["wall_seconds"].dropna()
    if len(sync):
        seconds = tables.number(float(sync.mean()))
        said.append(f"A weight transfer takes {seconds} s a step, whatever is thought (n = {len(sync)}).")
    return said


def _named(table: Table, prefix: str) -> Table:
    return Table(prefix + table.name, table.title, table.caption, table.data, table.shown)


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
