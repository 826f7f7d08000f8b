"""Fixtures: a sandbox of every provider, with real parts underneath."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal
from uuid import UUID

import pytest

from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.local import LocalProvider
from flows.sandbox.port import NodeCall, NodeFailure, NodeResult, Sandbox, SandboxProvider, SandboxSpec
from flows.sandbox.processes import is_alive
from tests.e2b_server.fixture import e2b_server, e2b_session_server

__all__ = ["e2b_server", "e2b_session_server"]

FLOW_RUN = UUID("0199c0de-0000-7000-8000-000000000007")
Kind = Literal["action", "decision", "condition"]


def spec(timeout: float = 600, output_limit: int = 65_536) -> SandboxSpec:
    """Return the spec of these tests' sandboxes."""
    return SandboxSpec(FLOW_RUN, "invoices #7 idom", timeout, output_limit)


def text(value: object) -> bytes:
    """Return a context value as the JSON that is sent."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class Bench:
    """A sandbox with short methods to run nodes; it numbers the calls."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._calls = 0

    async def load(self, **values: object) -> None:
        """Set values in the context."""
        await self.sandbox.load({name: text(value) for name, value in values.items()})

    def call(self, code: str, kind: Kind = "action", timeout: float = 20, node: str = "node") -> NodeCall:
        """Return the next call."""
        self._calls += 1
        return NodeCall(f"call-{self._calls}", node, kind, code, timeout)

    async def run(
        self, code: str, kind: Kind = "action", timeout: float = 20, node: str = "node"
    ) -> NodeResult:
        """Run a node that must succeed and return its result."""
        result = await self.sandbox.run(self.call(code, kind, timeout, node))
        assert result.failure is None, result
        return result

    async def fail(self, code: str, kind: Kind = "action", timeout: float = 20) -> NodeFailure:
        """Run a node that must fail without changes, and another after it; return the failure."""
        result = await self.sandbox.run(self.call(code, kind, timeout))
        assert result.failure is not None, result
        assert result.changes == {}
        after = await self.run("context['well'] = 'spoiled' not in context")
        assert after.changes.get("well", b"true") == b"true"
        return result.failure

    async def changes(self, code: str) -> dict[str, Any]:
        """Run a node and return its changes."""
        return {name: json.loads(value) for name, value in (await self.run(code)).changes.items()}


@pytest.fixture(params=["local", "e2b"])
def provider(request: pytest.FixtureRequest) -> SandboxProvider:
    """Every provider in turn; E2B's SDK uses the server of `tests.e2b_server`."""
    if request.param == "local":
        return LocalProvider()
    request.getfixturevalue("e2b_server")
    return E2BProvider()


@pytest.fixture
async def bench(provider: SandboxProvider) -> AsyncIterator[Bench]:
    """A fresh sandbox of every provider in turn."""
    sandbox = await provider.create(spec())
    yield Bench(sandbox)
    await sandbox.kill()


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """The function that returns whether a process runs; a zombie does not."""
    return is_alive
