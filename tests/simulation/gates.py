"""The seams: whatever leaves a process stops here until the simulation lets it go on, lost, late or twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, Generic, TypeVar

from tests.simulation.loop import VirtualLoop

T = TypeVar("T")


role: ContextVar[str] = ContextVar("role", default="run")
"""The part of a process that does something: run, reconciler, api."""


class KilledError(BaseException):
    """The process was killed: nothing of it passes a seam any more."""


class Process:
    """What may be paused and killed: some tasks, and what they have under way."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.loop = loop
        self.context = copy_context()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """In the order in which they began: a set would have another each time."""
        self.is_alive = True
        self.is_paused = False
        self.stalled: set[str] = set()
        """Its parts that stand still while the others go on."""

    def __repr__(self) -> str:
        return self.name

    @property
    def is_halted(self) -> bool:
        """Whether it, or a part of it, stands still."""
        return self.is_paused or bool(self.stalled)


class Step:
    """Something that happens when the simulation says so."""

    def __init__(self, label: str, process: Process | None, go: Callable[[], None]) -> None:
        self.label = label
        self.process = process
        """Whose step it is; None: it happens by itself."""
        self.part = role.get() if process is not None else label
        self.go = go

    @property
    def may_go(self) -> bool:
        """Whether it may happen now: nothing happens in a process, or a part of it, that is paused."""
        return self.process is None or (
            self.process.is_alive and not self.process.is_paused and self.part not in self.process.stalled
        )


class Call(Step, Generic[T]):
    """A request of a process, then its answer: two steps."""

    def __init__(
        self,
        gate: Gate,
        process: Process,
        label: str,
        act: Callable[[], T | Later[T]],
        lost: Callable[[bool], Exception],
        *,
        is_instant: bool = False,
    ) -> None:
        super().__init__(label, process, self._arrive)
        self._gate = gate
        self._act = act
        self._lost = lost
        self.is_instant = is_instant
        """Whether it is never long on its way, nor twice: a transaction."""
        self.is_sent = False
        """Whether it has left its process and may arrive whatever becomes of that."""
        self.has_arrived = False
        self.answer: asyncio.Future[T] = process.loop.create_future()

    @property
    def may_go(self) -> bool:
        """Whether it may happen now; what was sent arrives also when its sender is paused or dead."""
        return super().may_go or (self.is_sent and not self.has_arrived)

    def lose(self) -> None:
        """Lose the request or the answer, whichever is on its way; the caller gets an error."""
        self._gate.remove(self)
        self._settle(self._lost(self.has_arrived))

    def double(self) -> None:
        """Let the request arrive one time more, later."""
        again = Call(self._gate, self.sender, f"{self.label} (again)", self._act, self._lost)
        again.is_sent = True
        again.answer.cancel()
        self._gate.add(again)

    def kill(self, arrives: bool) -> None:
        """End the wait for it, since its process is dead; a request that was sent `arrives`, late perhaps."""
        if not self.answer.done():
            self.answer.set_exception(KilledError())
        if self.has_arrived or not arrives:
            self._gate.remove(self)
        elif self.is_instant:
            self.go()
        else:
            self.is_sent = True

    @property
    def sender(self) -> Process:
        """Whose request it is."""
        if self.process is None:
            raise RuntimeError("A call has a sender.")
        return self.process

    def reply(self, outcome: T | Exception) -> None:
        """Send the answer, for which somebody may wait still."""
        if self.answer.done() or not self.sender.is_alive:
            return
        self.label, self.go = f"answer to {self.label}", lambda: self._return(outcome)
        self._gate.add(self)

    def _arrive(self) -> None:
        self._gate.remove(self)
        self.has_arrived = True
        try:
            outcome = self._act()
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self.reply(error)
            return
        if isinstance(outcome, Later):
            outcome.call = self
        else:
            self.reply(outcome)

    def _return(self, outcome: T | Exception) -> None:
        self._gate.remove(self)
        self._settle(outcome)

    def _settle(self, outcome: T | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Later(Generic[T]):
    """What a call's arrival gives where its answer comes later."""

    call: Call[T] | None = None

    def reply(self, outcome: T | Exception) -> None:
        """Send the answer of the call that it was given to."""
        if self.call is not None:
            self.call.reply(outcome)


class Gate:
    """All steps that may come next, in the order in which they came up."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._ranks: dict[tuple[Process | None, str], int] = {}
        """Of parts of processes that are slower or faster than others at the moment."""

    def add(self, step: Step) -> None:
        """Have a step wait."""
        self.steps.append(step)

    def remove(self, step: Step) -> None:
        """A step is gone."""
        self.steps.remove(step)

    @property
    def open(self) -> list[Step]:
        """The steps that may happen now, those of faster parts of processes first."""
        may = [step for step in self.steps if step.may_go]
        return sorted(may, key=lambda step: self._ranks.get((step.process, step.part), 0))

    @property
    def parts(self) -> list[tuple[Process | None, str]]:
        """The parts of processes that have a step to make, or a rank."""
        return list(dict.fromkeys([*((step.process, step.part) for step in self.steps), *self._ranks]))

    def rank(self, part: tuple[Process | None, str], rank: int) -> None:
        """Make a part of a process faster or slower than others: 0 is usual, less is faster."""
        if rank:
            self._ranks[part] = rank
        else:
            self._ranks.pop(part, None)

    def forget(self, process: Process | None = None) -> None:
        """Forget the ranks of a process, or all."""
        self._ranks = {
            key: rank for key, rank in self._ranks.items() if process is not None and key[0] is not process
        }

    def of(self, process: Process) -> list[Call[Any]]:
        """What a process has under way."""
        return [step for step in self.steps if step.process is process and isinstance(step, Call)]

    def call(
        self,
        process: Process,
        label: str,
        act: Callable[[], T | Later[T]],
        lost: Callable[[bool], Exception],
        *,
        is_instant: bool = False,
    ) -> Call[T]:
        """Send a request of a process; `lost` says what the caller gets where request or answer is lost."""
        if not process.is_alive:
            raise KilledError
        call = Call(self, process, label, act, lost, is_instant=is_instant)
        self.add(call)
        return call
