"""Schemas of what clients send. Unknown fields are ignored, as in the old build."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Priority = Literal["high", "normal", "low"]
Overlap = Literal["queue", "skip"]
Concurrency = Annotated[int, Field(ge=1, lt=2**31)]

GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": "start", "type": "start"},
        {
            "id": "read",
            "type": "action",
            "label": "Read the invoice",
            "code": "context['amount'] = 1200",
            "timeout": 30,
        },
        {"id": "high", "type": "decision", "condition": "context['amount'] > 1000"},
        {"id": "approve", "type": "action", "code": "context['approved'] = False"},
        {"id": "end", "type": "end"},
    ],
    "edges": [
        {"from": "start", "to": "read"},
        {"from": "read", "to": "high"},
        {"from": "high", "to": "approve", "condition": "true"},
        {"from": "high", "to": "end", "condition": "false"},
        {"from": "approve", "to": "end"},
    ],
}
"""A small graph for the documentation."""


def _given(value: object) -> object:
    """Return the value; raise ValueError for null, in a field that may only be left out."""
    if value is None:
        raise ValueError("may be left out, but not be null")
    return value


NotNull = AfterValidator(_given)


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class WorkflowCreate(BaseModel):
    """A new workflow."""

    model_config = _example(
        name="Invoice Processing V3", description="Invoices by mail", graph_definition=GRAPH
    )

    name: str = Field(min_length=1, max_length=255, description="Unique among the workflows.")
    description: str | None = None
    graph_definition: dict[str, Any] = Field(
        description='The graph: `{"nodes": [...], "edges": [{"from", "to", "condition"?}], "max_steps"?}`.'
    )
    priority: Priority = Field("normal", description="The queue of its runs.")
    max_concurrent_runs: Concurrency | None = Field(None, description="null: as many as come.")
    overlap: Overlap = Field(
        "queue", description="A run past `max_concurrent_runs` waits (`queue`) or is cancelled (`skip`)."
    )


class WorkflowUpdate(BaseModel):
    """Any subset of a workflow's fields; what is left out stays."""

    model_config = _example(description="Invoices by mail, second edition", priority="high")

    name: Annotated[str | None, Field(min_length=1, max_length=255), NotNull] = None
    description: str | None = None
    graph_definition: Annotated[dict[str, Any] | None, NotNull] = None
    priority: Annotated[Priority | None, NotNull] = None
    max_concurrent_runs: Concurrency | None = None
    overlap: Annotated[Overlap | None, NotNull] = None


class Execute(BaseModel):
    """How to run a workflow; the whole body may be left out."""

    model_config = _example(client_slug="idom", initial_context={"mailbox": "INBOX"})

    client_slug: str | None = Field(None, description="The client whose credentials the nodes get.")
    initial_context: dict[str, Any] | None = Field(
        None, description="What the first node finds in `context`."
    )
    priority: Priority | None = Field(None, description="The queue of this run; default is the workflow's.")


def _branch(value: object) -> object:
    """Return a boolean as the text that graphs may write for it; any other value stays."""
    return str(value).lower() if isinstance(value, bool) else value


class SkipNode(BaseModel):
    """What a run goes on with after the skipped node."""

    model_config = _example(context={"mail_sent": True})

    context: dict[str, Any] = Field(
        default_factory=dict, description="Keys that are laid over the context, as if the node had done so."
    )
    branch: Annotated[str | None, BeforeValidator(_branch)] = Field(
        None, description='The answer of a decision (`"true"`, say), and only of one.'
    )


class ClientCreate(BaseModel):
    """A new client."""

    model_config = _example(slug="idom", name="IDOM")

    slug: str = Field(min_length=1, max_length=64, description="Lowercase letters, digits, `-` and `_`.")
    name: str = Field(min_length=1, max_length=255)
    active: bool = Field(True, description="No workflow runs for a client that is not active.")


class ClientUpdate(BaseModel):
    """Any subset of a client's fields; its slug stays."""

    model_config = _example(active=False)

    name: Annotated[str | None, Field(min_length=1, max_length=255), NotNull] = None
    active: Annotated[bool | None, NotNull] = None


class CredentialPut(BaseModel):
    """Credentials of a client; what is secret in `fields` is encrypted and never shown again."""

    model_config = _example(
        kind="email",
        label="invoices",
        primary=True,
        fields={
            "email_user": "invoices@idom.example",
            "email_password": "app-password",  # an example's
            "imap_host": "imap.idom.example",
            "imap_port": 993,
            "smtp_host": "smtp.idom.example",
            "smtp_port": 587,
            "sender_whitelist": ["supplier@example.com"],
        },
    )

    kind: Literal["email", "database"]
    label: str = Field("default", min_length=1, max_length=64)
    primary: bool = Field(
        False, description="Whether nodes get these; the first of a kind is primary in any case."
    )
    fields: dict[str, Any] = Field(
        description="email: email_user, email_password, imap_host, imap_port, smtp_host, smtp_port, "
        "sender_whitelist; database: db_host, db_port, db_name, db_user, db_password."
    )


class ScheduleCreate(BaseModel):
    """When a workflow is to run by itself."""

    model_config = _example(cron="0 9 * * *", timezone="Europe/Madrid", parameters={"client_slug": "idom"})

    cron: str = Field(min_length=1, max_length=255, description="Minute, hour, day, month, day of week.")
    timezone: str = Field("UTC", min_length=1, max_length=64, description="An IANA time zone.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="`client_slug` and `initial_context` of the runs; small, and visible in Prefect.",
    )
    active: bool = True


class ScheduleUpdate(BaseModel):
    """Any subset of a schedule's fields; what is left out stays."""

    model_config = _example(active=False)

    cron: Annotated[str | None, Field(min_length=1, max_length=255), NotNull] = None
    timezone: Annotated[str | None, Field(min_length=1, max_length=64), NotNull] = None
    parameters: Annotated[dict[str, Any] | None, NotNull] = None
    active: Annotated[bool | None, NotNull] = None
