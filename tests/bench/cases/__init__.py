"""What the cases share. A case is an async function that returns rows; --help shows its docstring."""

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
"""Runs that a worker executes at once, unless a case says otherwise."""


@dataclass(frozen=True)
class Pair(Generic[T]):
    """The measurements of NOVA and of stock Prefect; `stock` is None if it was not measured."""

    nova: T
    stock: T | None

    def row(self, case: str, what: str, unit: str, figure: Callable[[T], float], **more: Any) -> Row:
        """Return the row for one figure of both."""
        stock = None if self.stock is None else figure(self.stock)
        return Row(case, what, unit, figure(self.nova), stock, **more)

    def note(self, number: Callable[[T], int], how: str = "") -> str:
        """Return the number of runs measured; stock runs are slow, so there are fewer."""
        stock = "" if self.stock is None else f" (stock {number(self.stock)})"
        return f"n={number(self.nova)}{stock}" + (f", {how}" if how else "")


@dataclass(frozen=True)
class Bench:
    """What a case gets: servers, a client and options."""

    site: Site
    client: Client
    with_stock: bool
    quick: bool
    say: Callable[[str], None]

    def number(self, full: int, quick: int) -> int:
        """Return the number of repetitions: `full`, or `quick` with --quick."""
        return quick if self.quick else full

    async def pair(
        self, measure: Callable[[Kind, int], Awaitable[T]], nova: tuple[int, int], stock: tuple[int, int]
    ) -> Pair[T]:
        """Measure both worker types; `nova` and `stock` are the arguments of `number`."""
        ours = await measure("nova", self.number(*nova))
        theirs = await measure("process", self.number(*stock)) if self.with_stock else None
        return Pair(ours, theirs)


def trivial(nodes: int = 4) -> dict[str, Any]:
    """Return a graph of nodes that do nearly nothing."""
    return line(*(action(f"n{i}", f"context['n'] = {i}") for i in range(nodes)))


Case = Callable[[Bench], Awaitable[list[Row]]]
