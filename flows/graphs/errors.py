"""One tree of exceptions for all of NOVA.

Three kinds of failure matter to a run: the node's code raised (`NodeError`, never retried by itself),
infrastructure broke (`InfrastructureError`, worth another try) and a limit was passed (`LimitError`).
The rest are answers to a caller; `api/errors.py` alone gives them HTTP statuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from flows.graphs.lifecycle import ErrorKind


class NovaError(Exception):
    """Base of every error that NOVA raises on purpose; `str()` is a sentence for a person."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    """What is stored with a failed execution: which kind of failure this was."""


# -- what a caller did -------------------------------------------------------------------------------


class NotFoundError(NovaError):
    """The thing asked for does not exist."""


class ConflictError(NovaError):
    """The request contradicts what is stored: a name that is taken, say."""


class InvalidInputError(NovaError):
    """The input cannot be used; `problems` names each fault."""

    def __init__(self, message: str, problems: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class InvalidValueError(InvalidInputError):
    """A value is not JSON as NOVA carries it (NaN, too deep, an integer too long); `path` says where."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message, [{"field": path, "message": message}] if path else [])
        self.path = path


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a graph, by node or edge.

    `edge` is the index in the graph's `edges`; `line` and `column` (from 1) point into the node's code.
    """

    code: str
    message: str
    node: str | None = None
    edge: int | None = None
    line: int | None = None
    column: int | None = None


class InvalidGraphError(InvalidInputError):
    """A graph with faults: `faults` and `problems` have all of them, the sentence the first few."""

    SHOWN: ClassVar[int] = 10

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        count, left = len(self.faults), len(self.faults) - self.SHOWN
        super().__init__(
            f"The graph has {count} fault{'s' if count != 1 else ''}: "
            + " ".join(fault.message for fault in self.faults[: self.SHOWN])
            + (f" And {left} more." if left > 0 else ""),
            [{k: v for k, v in vars(f).items() if v is not None} for f in self.faults],
        )


# -- what happens to a run ---------------------------------------------------------------------------


class NodeError(NovaError):
    """A node failed by its own doing: it raised, exited, ran past its timeout, left what is not JSON."""

    kind = ErrorKind.NODE

    def __init__(self, message: str, *, node_id: str = "", error_type: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.node_id = node_id
        self.error_type = error_type
        self.traceback = traceback


class LimitError(NovaError):
    """A run passed one of its bounds: steps, seconds, size."""

    kind = ErrorKind.LIMIT


class StepLimitError(LimitError):
    """A loop went round more often than `max_steps` allows."""


class RunTimeoutError(LimitError):
    """The run took longer than a run may."""


class ExecutionClosedError(NovaError):
    """A flow run came for an execution that is over already; nothing is to be run."""


class LeaseError(NovaError):
    """This process may not write what becomes of a run: it says nothing to Prefect either."""


class LeaseHeldError(LeaseError):
    """Another process runs the execution."""


class LeaseLostError(LeaseError):
    """Another process took the execution over, or it was closed from outside."""


class InterruptedRunError(NovaError):
    """A node that must not be started twice was started, and what became of it is unknown."""

    kind = ErrorKind.INTERRUPTED


class InfrastructureError(NovaError):
    """Something under the run broke; the same step may well succeed later."""

    kind = ErrorKind.INFRASTRUCTURE


class SandboxError(InfrastructureError):
    """The sandbox could not be made, vanished, or does not answer.

    `reason` says which case it is, for code that decides on another try: authentication, refused, no_turn,
    rate_limit, busy, gone, space, timeout, unreachable, unwell, runner or broken.
    """

    def __init__(self, message: str, *, reason: str = "broken") -> None:
        super().__init__(message)
        self.reason = reason
        self.unused = False
        """Whether no node's code had run in the sandbox yet: then no node can have broken it."""


class BreakerOpenError(InfrastructureError):
    """The provider of the sandboxes fails: nobody is to try it before `retry_at`."""

    def __init__(self, message: str, *, retry_at: datetime | None) -> None:
        super().__init__(message)
        self.retry_at = retry_at


class DatabaseUnavailableError(InfrastructureError):
    """PostgreSQL does not answer."""


class CommitUnknownError(DatabaseUnavailableError):
    """PostgreSQL did not answer a commit: what was to be written may stand, or not."""


class DatabaseRefusedError(NovaError):
    """PostgreSQL answered that it will not do this, and would answer so again: nobody waits for it.

    `code` is its SQLSTATE. See `flows.store.refusals` for what counts as one.
    """

    kind = ErrorKind.REFUSED

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class PrefectUnavailableError(InfrastructureError):
    """Prefect's server does not answer, or not in time."""


class ConfigurationError(NovaError):
    """A setting is missing or wrong; the message says which and what to do."""
