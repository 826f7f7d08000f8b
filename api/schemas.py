"""Schemas of what clients get, for the documentation.

`api/views.py` and `api/chain_stream.py` write the answers. Tests check every answer with these schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.requests import GRAPH, Overlap, Priority
from flows.graphs.lifecycle import Status, StepStatus

Time = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-31T09:00:00.120000Z"])
]
"""ISO 8601 in UTC with a `Z`."""
ExecutionStatus = Literal[Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELLED]
SUCCEEDED: Literal["success"] = "success"
"""The contract's word for the result of a completed run."""
MOMENT = "2026-01-31T09:00:00.120000Z"
TASK = "3f2b8c1e-6f0d-4d8e-9a51-0c7d5e3b2a10"


class Answer(BaseModel):
    """An answer has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """One bad field, or one fault of a graph: then with `code`, and `node`, `edge`, `line`, `column`."""

    field: str = ""
    message: str


class Error(Answer):
    """An error: the first two fields are the old build's, the others RFC 9457's."""

    error: str = Field(description="A sentence.")
    status_code: int
    type: str
    title: str
    detail: str
    errors: list[Problem] = Field(default_factory=list, description="With 422: each bad field.")


class Message(Answer):
    """A sentence."""

    message: str


class Warning(BaseModel):
    """Something in a graph that is kept but not used."""

    code: str
    message: str


class Workflow(Answer):
    """A workflow with its current graph."""

    id: int = Field(examples=[1])
    name: str = Field(examples=["Invoice Processing V3"])
    description: str | None = Field(examples=["Invoices by mail"])
    graph_definition: dict[str, Any] = Field(examples=[GRAPH])
    created_at: Time
    updated_at: Time
    slug: str = Field(examples=["invoice-processing-v3"], description="Name of its Prefect deployment.")
    version: int = Field(examples=[1], description="Counts the changes of the graph.")
    priority: Priority
    max_concurrent_runs: int | None = Field(examples=[None])
    overlap: Overlap


class ListedWorkflow(Workflow):
    """A workflow in a list."""

    graph_definition: dict[str, Any] | None = Field(  # type: ignore[assignment]
        examples=[GRAPH], description="null with `graphs=none`."
    )


class SavedWorkflow(Workflow):
    """A workflow that was just saved."""

    warnings: list[Warning] = Field(examples=[[]])


class Workflows(Answer):
    """A page of workflows."""

    workflows: list[ListedWorkflow]
    total: int = Field(examples=[1])


class Queued(Answer):
    """A run that Prefect has confirmed."""

    task_id: UUID = Field(examples=[TASK], description="Id of the Prefect flow run.")
    status: Literal["queued"]
    workflow_id: int = Field(examples=[1])
    workflow_name: str = Field(examples=["Invoice Processing V3"])
    message: str = Field(examples=[f"Workflow queued for execution. Use GET /tasks/{TASK} to check status."])


class ExecutionResult(Answer):
    """The result of a completed run; in lists without the context."""

    execution_id: int = Field(examples=[8])
    status: Literal["success"]
    final_context: dict[str, Any] | None = Field(None, examples=[{"amount": 1200, "approved": False}])
    nodes_executed: int = Field(examples=[5])


class Execution(Answer):
    """One run of a workflow."""

    id: int = Field(examples=[8])
    workflow_id: int = Field(examples=[1])
    status: ExecutionStatus = Field(examples=[Status.COMPLETED])
    started_at: Time | None
    completed_at: Time | None
    result: ExecutionResult | None
    error: str | None = Field(examples=[None])
    created_at: Time
    client_slug: str | None = Field(examples=["idom"])
    task_id: UUID | None = Field(examples=[TASK])
    failed_at_node: str | None = Field(examples=[None])
    workflow_version: int | None = Field(
        examples=[1], description="The version of the graph that the run is pinned to since it started."
    )


class Executions(Answer):
    """A page of executions, newest first."""

    executions: list[Execution]
    total: int = Field(examples=[1])


class ChainEntry(Answer):
    """One attempt of one step."""

    id: int = Field(examples=[31])
    execution_id: int = Field(examples=[8])
    node_id: str = Field(examples=["high"])
    node_type: Literal["start", "action", "decision", "end"] = Field(examples=["decision"])
    code_executed: str | None = Field(examples=["context['amount'] > 1000"])
    input_context: dict[str, Any] | None = Field(
        examples=[{"amount": 1200}], description="The context before the node; null unless `contexts=full`."
    )
    output_result: dict[str, Any] | None = Field(
        examples=[{"amount": 1200}],
        description="The context after it (`full`), what it changed (`changes`), or null; null if it failed.",
    )
    execution_time: float = Field(examples=[0.012], description="Seconds.")
    status: Literal[StepStatus.SUCCESS, StepStatus.FAILED]
    error_message: str | None = Field(examples=[None])
    decision_result: str | None = Field(examples=["true"])
    path_taken: str | None = Field(examples=["approve"])
    timestamp: Time
    step: int = Field(examples=[2])
    attempt: int = Field(examples=[1])
    label: str | None = Field(examples=[None])
    stdout: str = Field(examples=[""])
    stderr: str = Field(examples=[""])
    error_type: str | None = Field(examples=[None])
    traceback: str | None = Field(examples=[None])


class Chain(Answer):
    """The Chain of Work, in order."""

    execution_id: int = Field(examples=[8])
    entries: list[ChainEntry]
    total: int = Field(examples=[5], description="How many entries there are, on this page or not.")


class Progress(Answer):
    """How far a run is."""

    nodes_done: int = Field(examples=[2])
    current_node: str | None = Field(examples=["high"])


class TaskMeta(Answer):
    """What a running task is doing."""

    execution_id: int = Field(examples=[8])
    workflow_id: int = Field(examples=[1])
    workflow_name: str = Field(examples=["Invoice Processing V3"])
    client_slug: str | None = Field(examples=["idom"])
    started_at: Time | None
    progress: Progress


class TaskResult(ExecutionResult):
    """The result of a task that succeeded."""

    final_context: dict[str, Any] = Field(examples=[{"amount": 1200, "approved": False}])
    execution_trace: list[ChainEntry] = Field(description="The chain with `contexts=none`.")


class Task(Answer):
    """The state of a task; `status` says which optional fields it has."""

    task_id: UUID = Field(examples=[TASK])
    status: Literal["PENDING", "RUNNING", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
    message: str = Field(examples=["Task completed successfully"])
    meta: TaskMeta | None = Field(None, description="With RUNNING.")
    retries: int | None = Field(
        None, description="With RETRY: how often a retry was scheduled because infrastructure failed."
    )
    next_attempt_at: Time | None = Field(None, description="With RETRY: when it is tried again.")
    execution_id: int | None = Field(None, description="With SUCCESS, FAILURE and REVOKED.")
    result: TaskResult | None = Field(None, description="With SUCCESS.")
    error: str | None = Field(None, description="With FAILURE, RETRY and REVOKED.")
    failed_at_node: str | None = Field(None, description="With FAILURE.")


class Accepted(Answer):
    """What was done to a run; `GET /tasks/{task_id}` tells the outcome."""

    task_id: UUID = Field(examples=[TASK])
    status: Literal["REVOKED", "RETRY"] = Field(description="What the task reads now.")
    execution_id: int | None = Field(examples=[8], description="null where the run has none yet.")
    message: str = Field(examples=["Task was cancelled"])


class Credential(Answer):
    """One set of credentials; what is secret reads `***`."""

    kind: Literal["email", "database"]
    label: str = Field(examples=["invoices"])
    primary: bool = Field(examples=[True])
    fields: dict[str, Any] = Field(
        examples=[{"email_user": "invoices@idom.example", "email_password": "***"}]
    )
    created_at: Time
    updated_at: Time


class Credentials(Answer):
    """All credentials of a client."""

    credentials: list[Credential]
    total: int = Field(examples=[1])


class Client(Answer):
    """A client."""

    id: int = Field(examples=[1])
    slug: str = Field(examples=["idom"])
    name: str = Field(examples=["IDOM"])
    active: bool = Field(examples=[True])
    credentials: list[Credential]
    created_at: Time
    updated_at: Time


class Clients(Answer):
    """A page of clients."""

    clients: list[Client]
    total: int = Field(examples=[1])


class Schedule(Answer):
    """When a workflow runs by itself."""

    id: int | None = Field(examples=[1], description="null where it was made in Prefect.")
    cron: str | None = Field(examples=["0 9 * * *"], description="null where it is an interval or a rule.")
    timezone: str | None = Field(examples=["Europe/Madrid"])
    parameters: dict[str, Any] = Field(examples=[{"client_slug": "idom"}])
    active: bool = Field(examples=[True])
    source: Literal["nova", "prefect"] = Field(
        description="Who keeps it: NOVA, or Prefect's UI and CLI alone."
    )
    rule: dict[str, Any] | None = Field(None, description="In lists: the schedule as Prefect has it.")


class Schedules(Answer):
    """All schedules of a workflow, those made in Prefect too."""

    schedules: list[Schedule]
    total: int = Field(examples=[1])
