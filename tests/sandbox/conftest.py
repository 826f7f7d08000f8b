"""The sandboxes under test: every provider there is, with the real parts under it."""

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
    """What a sandbox of these tests is made for."""
    return SandboxSpec(FLOW_RUN, "invoices #7 idom", timeout, output_limit)


def text(value: object) -> bytes:
    """A context value as it crosses."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class Bench:
    """A sandbox that nodes are tried out in; calls are numbered."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._calls = 0

    async def load(self, **values: object) -> None:
        """Lay values over the context."""
        await self.sandbox.load({name: text(value) for name, value in values.items()})

    def call(self, code: str, kind: Kind = "action", timeout: float = 20, node: str = "node") -> NodeCall:
        """Make the next call."""
        self._calls += 1
        return NodeCall(f"call-{self._calls}", node, kind, code, timeout)

    async def run(
        self, code: str, kind: Kind = "action", timeout: float = 20, node: str = "node"
    ) -> NodeResult:
        """Run a node that must succeed."""
        result = await self.sandbox.run(self.call(code, kind, timeout, node))
        assert result.failure is None, result
        return result

    async def fail(self, code: str, kind: Kind = "action", timeout: float = 20) -> NodeFailure:
        """Run a node that must fail, then one that must not: the sandbox is well, and nothing was kept."""
        result = await self.sandbox.run(self.call(code, kind, timeout))
        assert result.failure is not None, result
        assert result.changes == {}
        after = await self.run("context['well'] = 'spoiled' not in context")
        assert after.changes.get("well", b"true") == b"true"
        return result.failure

    async def changes(self, code: str) -> dict[str, Any]:
        """Run a node and read what it changed."""
        return {name: json.loads(value) for name, value in (await self.run(code)).changes.items()}


@pytest.fixture(params=["local", "e2b"])
def provider(request: pytest.FixtureRequest) -> SandboxProvider:
    """Every provider in turn; E2B's SDK speaks to the server of `tests.e2b_server`."""
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
    """Whether a process lives; one that only waits to be collected does not."""
    return is_alive
