"""The cases. Each is an async function that measures and returns its rows; its docstring is its help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tests.bench.client import Client
from tests.bench.site import Kind, Site
from tests.bench.table import Row
from tests.builders import action, line

T = TypeVar("T")

LIMIT = 20
"""Runs that a worker does at once where a case says nothing else."""


@dataclass(frozen=True)
class Pair(Generic[T]):
    """What was measured of NOVA and of stock Prefect, where that was measured."""

    nova: T
    stock: T | None

    def row(self, case: str, what: str, unit: str, figure: Callable[[T], float], **more: Any) -> Row:
        """Make a row of one figure of both."""
        stock = None if self.stock is None else figure(self.stock)
        return Row(case, what, unit, figure(self.nova), stock, **more)

    def note(self, number: Callable[[T], int], how: str = "") -> str:
        """Say how many runs the figures are of: a stock run takes so long that there are fewer."""
        stock = "" if self.stock is None else f" (stock {number(self.stock)})"
        return f"n={number(self.nova)}{stock}" + (f", {how}" if how else "")


@dataclass(frozen=True)
class Bench:
    """What a case works with."""

    site: Site
    client: Client
    with_stock: bool
    quick: bool
    say: Callable[[str], None]

    def number(self, full: int, quick: int) -> int:
        """How often something is done: in full, and with --quick."""
        return quick if self.quick else full

    async def pair(
        self, measure: Callable[[Kind, int], Awaitable[T]], nova: tuple[int, int], stock: tuple[int, int]
    ) -> Pair[T]:
        """Measure both worker types; the numbers are those of `number`."""
        ours = await measure("nova", self.number(*nova))
        theirs = await measure("process", self.number(*stock)) if self.with_stock else None
        return Pair(ours, theirs)


def trivial(nodes: int = 4) -> dict[str, Any]:
    """Build a graph of nodes that do next to nothing."""
    return line(*(action(f"n{i}", f"context['n'] = {i}") for i in range(nodes)))


Case = Callable[[Bench], Awaitable[list[Row]]]
