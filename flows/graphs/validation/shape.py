"""The shape of a graph: starts, ends, edges, and which node reaches which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from flows.graphs.errors import Fault
from flows.graphs.names import quoted

TRUTHS: Final = frozenset(("true", "false"))


@dataclass(frozen=True)
class Way:
    """An edge as far as it can be used; `source` or `target` is None where it is no node of the graph."""

    index: int
    source: str | None
    target: str | None
    condition: str | None
    readable: bool = True
    """False where its condition is a fault already."""


@dataclass
class Shape:
    """What can be used of a graph whose parts were checked: id → type (None where unknown), and the edges."""

    types: dict[str, str | None] = field(default_factory=dict)
    ways: list[Way] = field(default_factory=list)
    nameless: set[str | None] = field(default_factory=set)
    """Types of the nodes that are missing here because they have no usable id."""

    def of_types(self) -> Iterator[Fault]:
        """Yield what is wrong with the starts and ends, but for what a node without an id explains."""
        starts = self._all("start")
        if not starts and not self.nameless & {"start", None}:
            yield Fault("no-start", 'The graph has no start. Add one node of type "start".')
        for extra in starts[1:]:
            yield Fault(
                "several-starts",
                f"Node {quoted(extra)} is a second start beside {quoted(starts[0])}. Keep exactly one.",
                extra,
            )
        if not self._all("end") and not self.nameless & {"end", None}:
            yield Fault("no-end", 'The graph has no end. Add at least one node of type "end".')

    def of_ways(self) -> Iterator[Fault]:
        """Yield what is wrong with the edges, leaving out what follows from another fault."""
        starts, ends = self._all("start"), self._all("end")
        yield from self._ways_out()
        if starts:
            yield from self._unreachable(starts)
        if ends:
            yield from self._stuck(ends)

    def _all(self, kind: str) -> list[str]:
        return [node for node, its_kind in self.types.items() if its_kind == kind]

    def _ways_out(self) -> Iterator[Fault]:
        leaving: dict[str, list[Way]] = {node: [] for node in self.types}
        for way in self.ways:
            if way.source is not None:
                leaving[way.source].append(way)
        for node, ways in leaving.items():
            match self.types[node]:
                case "end":
                    for way in ways:
                        message = f"The end {quoted(node)} has a way out. Remove edge {way.index}."
                        yield Fault("end-with-way-out", message, node, way.index)
                case "decision":
                    yield from _decision(node, ways)
                case "start" | "action" as kind:
                    yield from _single(node, kind, ways)

    def _unreachable(self, starts: list[str]) -> Iterator[Fault]:
        # What an edge from nowhere leads to is explained by that edge.
        entries = [way.target for way in self.ways if way.source is None and way.target is not None]
        reached = _reach([*starts, *entries], _neighbours((w.source, w.target) for w in self.ways))
        for node in self.types:
            if node not in reached:
                yield Fault(
                    "unreachable-node",
                    f"No path from the start reaches node {quoted(node)}. Connect or remove it.",
                    node,
                )

    def _stuck(self, ends: list[str]) -> Iterator[Fault]:
        # A node without an edge, or with one to nowhere, has its fault already, and a node that leads only
        # there is not at fault. What is left goes round for ever.
        leaving = {way.source for way in self.ways}
        explained = [node for node in self.types if node not in leaving]
        explained += [way.source for way in self.ways if way.source is not None and way.target is None]
        explained += _incomplete(self.types, self.ways)
        finishing = _reach([*ends, *explained], _neighbours((w.target, w.source) for w in self.ways))
        for node in self.types:
            if node not in finishing:
                yield Fault(
                    "no-path-to-end",
                    f"From node {quoted(node)} no end is ever reached: its paths only go round in a loop.",
                    node,
                )


def _single(node: str, kind: str, ways: list[Way]) -> Iterator[Fault]:
    if not ways:
        yield Fault(
            "no-way-out",
            f"Node {quoted(node)} has no way out. Add an edge from it, to an end at least.",
            node,
        )
    for way in ways[1:]:
        yield Fault(
            "several-ways-out",
            f"The {kind} {quoted(node)} has {len(ways)} ways out, and only a decision can choose. "
            f"Remove edge {way.index}, or put a decision there.",
            node,
            way.index,
        )


def _decision(node: str, ways: list[Way]) -> Iterator[Fault]:
    name = f"Decision {quoted(node)}"
    labels: dict[str, int] = {}
    for way in ways:
        if way.condition is None:
            if way.readable:
                message = (
                    f'{name} has a way without a condition. Give edge {way.index} "true", "false" or a label.'
                )
                yield Fault("way-without-condition", message, node, way.index)
        elif way.condition in labels:
            first = labels[way.condition]
            message = (
                f"{name} has two ways for {quoted(way.condition)}: edges {first} and {way.index}. Keep one."
            )
            yield Fault("doubled-way", message, node, way.index)
        else:
            labels[way.condition] = way.index
    truths = TRUTHS & labels.keys()
    if truths and len(labels) > len(truths):
        others = ", ".join(quoted(label) for label in list(labels)[:10] if label not in TRUTHS)
        message = f"{name} mixes true and false with other labels ({others}). Use the ones or the others."
        yield Fault("mixed-ways", message, node)
    elif len(labels) < 2 and (truths or len(ways) < 2) and all(way.condition is not None for way in ways):
        # An edge without a condition, or with the label of another one, is the one that is missing.
        yield Fault("missing-way", f"{name} {_missing(labels)}", node)


def _missing(labels: Mapping[str, int]) -> str:
    if not labels:
        return 'has no ways out. Add two edges, with the conditions "true" and "false".'
    (label,) = labels
    if label in TRUTHS:
        other = "false" if label == "true" else "true"
        return f'has a way for "{label}" but none for "{other}". Add that edge.'
    return f"has only the way {quoted(label)}. Add an edge for another answer, or make it an action."


def _incomplete(types: Mapping[str, str | None], ways: Iterable[Way]) -> list[str]:
    """Return the decisions that lack an edge: where that one will lead is open."""
    counts = dict.fromkeys((node for node, kind in types.items() if kind == "decision"), 0)
    for way in ways:
        if way.source in counts:
            counts[way.source] += 1
    return [node for node, count in counts.items() if count < 2]


def _neighbours(pairs: Iterable[tuple[str | None, str | None]]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for here, there in pairs:
        if here is not None and there is not None:
            result.setdefault(here, []).append(there)
    return result


def _reach(origins: Iterable[str], neighbours: Mapping[str, list[str]]) -> set[str]:
    reached = set(origins)
    waiting = list(reached)
    while waiting:
        for node in neighbours.get(waiting.pop(), ()):
            if node not in reached:
                reached.add(node)
                waiting.append(node)
    return reached
