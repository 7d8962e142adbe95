"""The chapter on what thinking costs: everything that one setting's rows say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports import figures, tables
from reports.chapter import Chapter, Section
from reports.costs import phase_costs
from reports.curves import Setting
from reports.drawing import Drawing
from reports.figures import PHASE_NAMES
from reports.headline import headline
from reports.tables import Table

if TYPE_CHECKING:
    from scaling.laws import Job


def cost_chapter(setting: Setting, job: Job) -> Chapter:
    said = headline(setting, job)
    return Chapter(setting.label, said.sentences, said.numbers, _sections(setting, job))


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
