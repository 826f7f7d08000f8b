"""Transactions that come late: they stand still, others get on with the run, and they happen all the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.simulation.gates import Call
from tests.simulation.ledger import Row
from tests.simulation.world import World

CLAIM = "claim"
"""A worker's transaction while it has no run, as that which takes one."""
WORK = "work"
"""A worker's transaction while it has a run."""
RECOVERY = "recovery"
"""A reconciler's transaction while it looks after a run."""
KINDS = (CLAIM, WORK, RECOVERY)

PASSED = 6
"""Transactions that pass at most before one stands still of which others stood still less often."""
MOMENTS = 3
"""One in so many of the worst moments is not taken: there may be a worse one."""


@dataclass
class Late:
    """A transaction that stands still."""

    call: Call[Any]
    runs: set[int]
    """The executions that its sender had: none where it is about to take one."""


@dataclass
class Wish:
    """That a transaction of some kind stand still."""

    kind: str
    passed: set[Call[Any]] = field(default_factory=set)
    """Those that were let pass."""


class Lateness:
    """Has one transaction at a time come late, each place in the code in its turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._wish: Wish | None = None
        self._late: Late | None = None
        self._stood = {kind: Counter[str]() for kind in KINDS}
        """Kind → what a transaction does → how often such a one has stood still."""

    @property
    def late(self) -> Late | None:
        """What stands still at the moment."""
        if self._late is not None and (
            self._late.call not in self._world.gate.steps or not self._late.call.sender.is_halted
        ):
            self._late = None
        return self._late

    def wish(self, kind: str) -> None:
        """Have a transaction of a kind stand still, one of the next."""
        if self.late is None and self._wish is None:
            self._wish = Wish(kind)

    def begin(self) -> UUID | None:
        """Have a transaction stand still where one is wished for; return the task whose run waits for it."""
        wish = self._wish
        if wish is None:
            return None
        for step in self._world.gate.steps:
            if not isinstance(step, Call) or step in wish.passed or not _is_about_to_go(step):
                continue
            rows = self._rows_of(step)
            if _kind(step, rows) == wish.kind and self._is_its_turn(step, wish):
                self._wish = None
                self._stand_still(step, rows)
                return rows[0]["task_id"] if rows else None
        return None

    def go_on(self, luck: int) -> None:
        """At the worst moment, usually, have the late transaction happen.

        That is when others have its run by now, or are done with it. One that is about to take a run comes
        when others are done with one.
        """
        taken, left = self._world.ledger.turned()
        if (late := self.late) is None or luck % MOMENTS == 0:
            return
        if late.runs & (taken | left) if late.runs else left:
            self._world.resume(late.call.sender)
            if late.call.may_go:
                self._world.step(late.call)

    def _rows_of(self, call: Call[Any]) -> list[Row]:
        ledger = self._world.ledger
        return [row for row in ledger.rows.values() if ledger.holder(row) == (call.sender, call.part)]

    def _is_its_turn(self, call: Call[Any], wish: Wish) -> bool:
        """Whether no other place in the code has its turn first; one that does not come is not waited for."""
        stood = self._stood[wish.kind]
        stood.setdefault(call.label, 0)
        if stood[call.label] > min(stood.values()) and len(wish.passed) < PASSED:
            wish.passed.add(call)
            return False
        stood[call.label] += 1
        return True

    def _stand_still(self, call: Call[Any], rows: list[Row]) -> None:
        """A worker is paused whole. A reconciler goes on, and gives up this run in time."""
        self._world.note(f"{call.sender} is late: {call.label}")
        self._late = Late(call, {row["id"] for row in rows})
        if call.part == "reconciler":
            self._world.stall(call.sender, call.part)
        else:
            self._world.pause(call.sender)
        if rows:
            self._world.pass_time(self._world.site.settings.lease_seconds + 1)


def _is_about_to_go(call: Call[Any]) -> bool:
    return call.is_instant and not call.has_arrived and call.may_go


def _kind(call: Call[Any], rows: list[Row]) -> str | None:
    if call.part == "reconciler":
        return RECOVERY if rows else None
    if call.part == "run":
        return WORK if rows else CLAIM
    return None
