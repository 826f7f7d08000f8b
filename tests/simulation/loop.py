"""An event loop whose time passes when the simulation says so, and never by itself."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context, ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Owner(Protocol):
    """Whose tasks and timers they are: a process of the simulation."""

    tasks: dict[asyncio.Task[Any], None]
    is_alive: bool
    is_paused: bool


owner: ContextVar[Owner | None] = ContextVar("owner", default=None)
"""The process that the code below this context belongs to."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what is ready, and stops where it would have to wait: for a timer, or for anything outside."""

    def __init__(self) -> None:
        super().__init__(_Stopping(self))
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Owner | None]] = []
        self._numbers = itertools.count()
        self.set_task_factory(_task)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._now

    def restart(self, at: float) -> None:
        """Begin anew at a time: sums of seconds are rounded as they were the last time."""
        self._now = at
        self._timers.clear()

    def settle(self) -> None:
        """Run until nothing is ready any more."""
        self.run_forever()

    def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; time passes where it waits for that."""
        task = self.create_task(work)
        self.settle()
        while not task.done():
            due = self.next_timer()
            if due is None:
                raise RuntimeError(f"{work!r} waits for what does not come.")
            self.pass_time(due - self._now)
        return task.result()

    def next_timer(self) -> float | None:
        """When the next timer goes off of a process that is not paused."""
        due = [at for at, _, handle, of in self._timers if not handle.cancelled() and _goes_off(of)]
        return min(due, default=None)

    def pass_time(self, seconds: float) -> None:
        """Let time pass; timers that are due go off one after the other, those of paused processes later."""
        until = self._now + max(0.0, seconds)
        kept: list[tuple[float, int, asyncio.TimerHandle, Owner | None]] = []
        while self._timers and self._timers[0][0] <= until:
            at, _, handle, of = timer = heapq.heappop(self._timers)
            if handle.cancelled() or (of is not None and not of.is_alive):
                continue
            if not _goes_off(of):
                kept.append(timer)
                continue
            self._now = max(self._now, at)
            self.call_soon(handle._run)
            self.settle()
        for timer in kept:
            heapq.heappush(self._timers, timer)
        self._now = until

    def call_at(  # type: ignore[override]  # typeshed ties the arguments to the callback
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Note a timer with the process that it belongs to."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle, owner.get()))
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # as above
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)


class _Stopping(selectors.BaseSelector):
    """A selector that has nothing to tell, and stops its loop where that would wait."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Take note of the loop's own pipe."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return self._keys[number]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forget it."""
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """What is registered."""
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Tell nothing."""
        if timeout != 0:
            self._loop.stop()
        return []


def _goes_off(of: Owner | None) -> bool:
    return of is None or (of.is_alive and not of.is_paused)


def _task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T] | Generator[Any, None, T],
    context: Context | None = None,
) -> asyncio.Task[T]:
    """Make a task that its process knows of."""
    task: asyncio.Task[T] = asyncio.Task(work, loop=loop, context=context)
    of = context.get(owner) if context is not None else owner.get()
    if of is not None:
        of.tasks[task] = None
        task.add_done_callback(lambda done: of.tasks.pop(done, None))
    return task
