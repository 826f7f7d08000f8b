"""The sandbox port: the interface that every sandbox provider implements.

One sandbox serves one run. It holds the run's context; each node gets a clean fork of it and returns only
the keys that it changed. Contexts are sent as *fragments*: key → the value's JSON text in ASCII bytes, so
that neither side parses a value that it does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

Fragments = Mapping[str, bytes]
"""Context key → its value as ASCII JSON text."""


@dataclass(frozen=True)
class SandboxSpec:
    """The run that a sandbox is created for: what is known of it before its execution is read."""

    flow_run: UUID
    """The flow run's id."""
    run: str
    """The flow run's name."""
    timeout: float
    """The run's limit in seconds."""
    output_limit: int = 65_536
    """Bytes of stdout, and as many of stderr, kept per node."""

    @property
    def metadata(self) -> dict[str, str]:
        """The sandbox's labels; they name its run, so that the cleanup finds left-over sandboxes."""
        return {"nova": "run", "flow_run": str(self.flow_run), "run": self.run}


@dataclass(frozen=True)
class NodeCall:
    """One node to run. `call_id` names this attempt of this step; a call with a known id is not run again."""

    call_id: str
    node_id: str
    kind: Literal["action", "decision", "condition"]
    """`condition` is a decision given as a Python expression."""
    code: str
    timeout: float
    """Seconds."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """The value of the variable `run` in the node's code; JSON."""
    changes_limit: int = 64 * 1024 * 1024
    """Bytes that all changed keys may have together (counted by `flows.graphs.json_values.size_of`)."""


@dataclass(frozen=True)
class NodeFailure:
    """Why a node failed: the exception's type name, its message, its traceback in the node's own code."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class NodeResult:
    """A node's result, after success or failure; times are in seconds."""

    changes: dict[str, bytes] = field(default_factory=dict)
    """The keys that the node set or changed; empty after a failure."""
    branch: str | None = None
    """A decision's answer: "true" or "false"; if it answered with a string, that string."""
    branch_truth: bool | None = None
    """The truth value in Python of a decision's answer, of whatever type."""
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    failure: NodeFailure | None = None


class Sandbox(Protocol):
    """The sandbox of one run. Every method but `kill` raises SandboxError if the sandbox itself is broken."""

    @property
    def id(self) -> str:
        """The provider's name for this sandbox."""
        ...

    async def load(self, context: Fragments) -> None:
        """Set these keys in the context that the sandbox holds."""
        ...

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node on the context and return its result; the next nodes see its changes.

        A node's own failure is a result, not an exception.
        """
        ...

    async def kill(self) -> None:
        """End the sandbox and everything in it. Never raises; may be called twice."""
        ...


@dataclass(frozen=True)
class FoundSandbox:
    """A sandbox that exists at the provider, whichever process created it."""

    id: str
    flow_run: UUID | None
    """The id of the flow run that it was created for; None if it has no such label."""
    started: datetime
    """When it was created, by the provider's clock, with a time zone."""


class SandboxProvider(Protocol):
    """Creates, lists and ends sandboxes."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Create a sandbox and start the runner in it; raises SandboxError.

        It may have to wait for its turn. If it is cancelled, it leaves no sandbox behind.
        """
        ...

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox by its id, whichever process created it; raises SandboxError.

        Does nothing if the sandbox has ended already.
        """
        ...

    async def list(self) -> Sequence[FoundSandbox]:
        """Return the sandboxes of this installation's runs that exist now; raises SandboxError."""
        ...
