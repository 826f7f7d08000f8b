"""The sandbox port: where a node's code runs, whoever provides the place.

One sandbox serves one run. It holds the run's context; each node gets a clean fork of it and sends back
only the keys that it changed. Contexts cross as *fragments*: key → the value's JSON text in ASCII bytes,
so that neither side parses what it only passes on.
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
    """What a sandbox is made for; known as soon as a run is taken, before its execution was read."""

    flow_run: UUID
    """The flow run's id."""
    run: str
    """The flow run's name."""
    timeout: float
    """The run's limit in seconds."""
    output_limit: int = 65_536
    """Bytes of stdout, and of stderr, kept per node."""

    @property
    def metadata(self) -> dict[str, str]:
        """What the sandbox is labelled with, so that one left behind can be traced to its run."""
        return {"nova": "run", "flow_run": str(self.flow_run), "run": self.run}


@dataclass(frozen=True)
class NodeCall:
    """One node to run. `call_id` names this attempt of this step: a repeated id is not run again."""

    call_id: str
    node_id: str
    kind: Literal["action", "decision", "condition"]
    """`condition` is a decision given as a Python expression."""
    code: str
    timeout: float
    """Seconds."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """What the code finds in its variable `run`; JSON."""
    changes_limit: int = 64 * 1024 * 1024
    """Bytes that the keys which it changes may have together (see `flows.graphs.json_values.size_of`)."""


@dataclass(frozen=True)
class NodeFailure:
    """Why a node failed: an exception's type name, its message, a traceback in the node's own lines."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class NodeResult:
    """What came of a node, successful or not; times are in seconds."""

    changes: dict[str, bytes] = field(default_factory=dict)
    """The keys that the node set or changed; empty after a failure."""
    branch: str | None = None
    """A decision's answer: "true" or "false", or the label itself where it answered with a string."""
    branch_truth: bool | None = None
    """A decision's answer by Python's truth, whatever its type."""
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    failure: NodeFailure | None = None


class Sandbox(Protocol):
    """A place for one run. Every method raises SandboxError when the place itself is broken."""

    @property
    def id(self) -> str:
        """The provider's name for this sandbox."""
        ...

    async def load(self, context: Fragments) -> None:
        """Lay these keys over the context that the sandbox holds."""
        ...

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node on the held context; its changes are kept for the nodes after it.

        A node's own failure is a result, not an exception.
        """
        ...

    async def kill(self) -> None:
        """End the sandbox and everything in it. Never raises; may be called twice."""
        ...


@dataclass(frozen=True)
class FoundSandbox:
    """A sandbox that there is, whoever made it."""

    id: str
    flow_run: UUID | None
    """The run that it was made for; None where it does not say."""
    started: datetime
    """When it was made, by its provider's clock, with a time zone."""


class SandboxProvider(Protocol):
    """Makes sandboxes."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox with the runner started in it; raises SandboxError.

        It may have to wait its turn. Cancelled, it leaves none behind.
        """
        ...

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox by its id, whoever made it; one that is gone is no error; raises SandboxError."""
        ...

    async def list(self) -> Sequence[FoundSandbox]:
        """The sandboxes that may be left over of this installation's runs; raises SandboxError."""
        ...
