"""Validate a graph completely. API and command line both use this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flows.code_check.compiler_process import Limits, compile_programs
from flows.graphs.errors import InfrastructureError
from flows.graphs.graph import Validation, judge_graph
from flows.graphs.validation.inspection import inspect_graph


class GraphChecker:
    """Validates graphs without blocking the event loop; at most `at_once` compiler processes run at once."""

    def __init__(self, limits: Limits, at_once: int = 2) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(at_once)

    async def validate(self, graph: object) -> Validation:
        """Check a graph and return every fault.

        Raises InfrastructureError if no compiler process could be started, or none became free in time.
        """
        inspection = await asyncio.to_thread(inspect_graph, graph, self._limits.code)
        verdicts = []
        if programs := inspection.programs:
            async with self._turn():
                verdicts = await compile_programs(programs, self._limits)
        return await asyncio.to_thread(judge_graph, graph, inspection, verdicts)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limits.patience):
                await self._turns.acquire()
        except TimeoutError:
            raise InfrastructureError(
                "NOVA is busy checking the code of other workflows. Send this one again later."
            ) from None
        try:
            yield
        finally:
            self._turns.release()
