"""Sandboxes in memory, which outlive the processes that made them; a node runs from one step to another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from flows.graphs.errors import SandboxError
from flows.sandbox.port import FoundSandbox, Fragments, NodeCall, NodeFailure, NodeResult, SandboxSpec
from tests.simulation.gates import Gate, Later, Process, Step

T = TypeVar("T")


@dataclass(eq=False)
class Place:
    """One sandbox, and the node that runs in it."""

    id: str
    flow_run: UUID
    is_alive: bool = True
    node: Node | None = None
    calls: set[str] = field(default_factory=set)
    """Ids of the calls that it knows: none is run again."""


class Node(Step, Later[NodeResult]):
    """A node that runs: the step is its end."""

    def __init__(self, gate: Gate, place: Place, call: NodeCall) -> None:
        super().__init__(f"node {call.node_id!r} ends", None, self._end)
        self.execution_id = int(call.run["execution_id"])
        self.number = int(call.run["step"])
        self.name = call.node_id
        self.fails = False
        """Whether its code raises."""
        self._gate = gate
        self._place = place

    def break_off(self) -> None:
        """End it without a result, with its sandbox."""
        self._leave()
        self._place.is_alive = False
        self.reply(SandboxError(f"{self._place.id} broke.", reason="gone"))

    def _end(self) -> None:
        self._leave()
        self.reply(NodeResult(failure=NodeFailure("ValueError", "It fails.") if self.fails else None))

    def _leave(self) -> None:
        self._gate.remove(self)
        self._place.node = None


class Cloud:
    """All sandboxes; `started` is called with each node that is."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.places: dict[str, Place] = {}
        self.started: Callable[[Node], None] = lambda node: None
        self._numbers = itertools.count(1)

    def make(self, flow_run: UUID) -> Place:
        """Make a sandbox."""
        place = Place(f"sandbox-{next(self._numbers)}", flow_run)
        self.places[place.id] = place
        return place

    def kill(self, sandbox_id: str) -> None:
        """End a sandbox with what runs in it."""
        place = self.places[sandbox_id]
        if place.node is not None:
            place.node.break_off()
        place.is_alive = False


class CloudProvider:
    """A process's way to the sandboxes."""

    def __init__(self, cloud: Cloud, process: Process) -> None:
        self._cloud = cloud
        self._process = process

    async def create(self, spec: SandboxSpec) -> CloudSandbox:
        """Make a sandbox; cancelled, it leaves none behind."""
        made: list[Place] = []

        def make() -> Place:
            made.append(self._cloud.make(spec.flow_run))
            return made[0]

        try:
            return CloudSandbox(self._cloud, self._process, await self._ask("create", make))
        except BaseException:
            if made and self._process.is_alive:
                self._cloud.kill(made[0].id)
            raise

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox by its id; raises SandboxError where the request or its answer is lost."""
        await self._ask(f"kill {sandbox_id}", lambda: self._cloud.kill(sandbox_id))

    async def list(self) -> Sequence[FoundSandbox]:
        """Nothing: nobody cleans up here."""
        return []

    async def _ask(self, what: str, act: Callable[[], T]) -> T:
        return await self._cloud.gate.call(self._process, f"sandbox: {what}", act, _lost).answer


@dataclass
class CloudSandbox:
    """A process's hold on one sandbox."""

    cloud: Cloud = field(repr=False)
    process: Process
    place: Place

    @property
    def id(self) -> str:
        """Its name."""
        return self.place.id

    async def load(self, context: Fragments) -> None:
        """Lay keys over its context: they are of no interest here."""
        await self._ask("load", self._check)

    async def run(self, call: NodeCall) -> NodeResult:
        """Run a node: its start is a step, its end, and the way of its result."""

        def start() -> Node:
            self._check()
            if call.call_id in self.place.calls:
                raise SandboxError("That call was sent before.")
            self.place.calls.add(call.call_id)
            node = self.place.node = Node(self.cloud.gate, self.place, call)
            self.cloud.gate.add(node)
            self.cloud.started(node)
            return node

        return await self._ask(f"run {call.node_id!r}", start)

    async def kill(self) -> None:
        """End it, unless that is lost."""
        with contextlib.suppress(SandboxError):
            await self._ask("kill", lambda: self.cloud.kill(self.id))

    def _check(self) -> None:
        if not self.place.is_alive:
            raise SandboxError(f"{self.id} does not live.", reason="gone")

    async def _ask(self, what: str, act: Callable[[], T | Later[T]]) -> T:
        return await self.cloud.gate.call(self.process, f"{self.id}: {what}", act, _lost).answer


def _lost(has_arrived: bool) -> Exception:
    return SandboxError("The sandbox does not answer.", reason="unreachable")
