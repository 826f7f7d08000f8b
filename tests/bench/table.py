"""Figures, the bars that they must meet, and the table of all figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Bar:
    """The bar of a figure in issue 3: at most `limit`, or at least `limit` if `at_most` is false."""

    limit: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Return whether a figure meets the bar."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One figure of NOVA and of stock Prefect; `stock` is None if it was not measured."""

    case: str
    what: str
    unit: str
    nova: float
    stock: float | None = None
    bar: Bar | None = None
    note: str = ""
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better NOVA is; None if a figure is missing or 0."""
        if not self.stock or not self.nova:
            return None
        return self.nova / self.stock if self.more_is_better else self.stock / self.nova


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the figure below which this percentage of the values is."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def machine() -> dict[str, str]:
    """Return the facts about machine and versions that the figures depend on."""
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return {
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB, "
        f"{platform.system()} {platform.machine()}",
        "load before": load,
        "Python": platform.python_version(),
        "Prefect": version("prefect"),
        "e2b": version("e2b"),
    }


def show(facts: dict[str, str], rows: Sequence[Row], failures: dict[str, str], console: Console) -> None:
    """Print the table, then the cases that failed."""
    head = " · ".join(f"{name}: {value}" for name, value in facts.items())
    table = Table(title=f"NOVA and stock Prefect (worker type process)\n{head}", title_justify="left")
    for name in ("case", "", "NOVA", "stock", "ratio", "bar", "met", "how"):
        figures = name in ("NOVA", "stock", "ratio", "bar")
        table.add_column(name, justify="right" if figures else "left", no_wrap=figures)
    for index, row in enumerate(rows):
        table.add_row(
            row.case if index == 0 or rows[index - 1].case != row.case else "",
            row.what,
            f"{_short(row.nova)} {row.unit}",
            "–" if row.stock is None else f"{_short(row.stock)} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.1f}×",
            str(row.bar or ""),
            "" if row.bar is None else "yes" if row.bar.met(row.nova) else "[bold]NO[/bold]",
            row.note,
            end_section=index + 1 < len(rows) and rows[index + 1].case != row.case,
        )
    console.print(table)
    for case, error in failures.items():
        console.print(f"{case} failed: {error}", markup=False)


def save(path: Path, facts: dict[str, str], rows: Sequence[Row], failures: dict[str, str]) -> None:
    """Write everything as JSON."""
    figures = [
        asdict(row) | {"ratio": row.ratio, "met": row.bar.met(row.nova) if row.bar else None} for row in rows
    ]
    path.write_text(json.dumps({"facts": facts, "rows": figures, "failures": failures}, indent=2) + "\n")


def _short(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
