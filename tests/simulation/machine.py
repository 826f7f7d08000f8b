"""The simulation as hypothesis' state machine, which makes what it finds as short as it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from hypothesis.strategies import integers

from tests.simulation.acts import Acts
from tests.simulation.driver import ALWAYS, AT_TIMES, BITS, numbers_of
from tests.simulation.healing import Healing
from tests.simulation.site import Site
from tests.simulation.world import World

NUMBERS = integers(0, 2**BITS - 1)
TOLD = 200
"""Lines of the trace that are told of what was found."""


class Machine(RuleBasedStateMachine):
    """One world; every act is a rule. A step at a time would be slow: `go_on` takes many, in their order."""

    site: ClassVar[Site]
    """Set by who runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.site)
        self.acts = Acts(self.world)

    @initialize(ranks=integers(0, 2**32 - 1))
    def start(self, ranks: int) -> None:
        """Begin."""
        self.acts.start(ranks)

    @rule(steps=integers(1, 30), luck=NUMBERS)
    def go_on(self, steps: int, luck: int) -> None:
        """All goes on for a while."""
        for number in range(steps):
            self.act(self.acts.step, 0, luck + number)

    def act(self, act: Callable[..., None], *numbers: int) -> None:
        """Have something happen, and see whether it was right."""
        act(*numbers)
        self.world.check()
        self._judge()

    def teardown(self) -> None:
        """Let everything come to rest, and see what is left."""
        try:
            if not self.world.ledger.violations:
                self.world.ledger.violations += Healing(self.world, self.acts).heal()
                self.world.check()
                self._judge()
        finally:
            self.world.end()

    def _judge(self) -> None:
        if self.world.ledger.violations:
            note("\n".join(self.world.trace[-TOLD:]))
            raise AssertionError("; ".join(self.world.ledger.violations))


def _rule_of(name: str) -> Any:
    """The rule of an act."""

    def follow(self: Machine, **numbers: int) -> None:
        self.act(getattr(self.acts, name), *numbers.values())

    follow.__name__ = name
    arguments: dict[str, Any] = {f"number_{n}": NUMBERS for n in range(numbers_of(name))}
    return rule(**arguments)(follow)  # type: ignore[no-untyped-call]


for _name in (*ALWAYS, *AT_TIMES):
    setattr(Machine, _name, _rule_of(_name))
