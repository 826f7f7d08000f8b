"""What is answered about NOVA itself, for the documentation; the tests hold every answer against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from api.schemas import Answer


class Root(Answer):
    """What this is."""

    name: str = Field(examples=["NOVA"])
    version: str = Field(examples=["0.1.0"])
    status: str = Field(examples=["running"])
    docs: str = Field(examples=["/docs"])
    redoc: str = Field(examples=["/redoc"])


class Health(Answer):
    """Whether runs can be taken in."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["connected", "disconnected"]
    e2b: Literal["configured", "not_configured"]
    prefect: Literal["connected", "disconnected"]
    workers: int = Field(examples=[1], description="Workers of the pool that are online.")


class DetailedHealth(Answer):
    """What is well and what is not."""

    healthy: bool
    components: dict[str, Any] = Field(
        examples=[
            {
                "database": {"healthy": True, "response_time_ms": 0.8},
                "executor": {"healthy": True, "mode": "e2b"},
                "error_rate": {"healthy": True, "error_rate": 0.0},
                "prefect": {"healthy": True},
                "work_pool": {"healthy": True},
                "workers": {"healthy": True, "online": 1},
            }
        ]
    )
    issues: list[str] = Field(examples=[[]])
    metrics: dict[str, Any]


class ExecutionMetrics(Answer):
    """Of the last 24 hours; a request that was refused (503) made no run."""

    total: int = Field(examples=[120])
    completed: int = Field(examples=[117])
    failed: int = Field(examples=[2])
    pending: int = Field(examples=[1])
    success_rate: float = Field(examples=[98.32], description="Percent of those that are over.")


class ErrorRate(Answer):
    """Of the last hour, counted like the others."""

    period_hours: int = Field(examples=[1])
    total_executions: int = Field(examples=[6])
    failed_executions: int = Field(examples=[0])
    error_rate: float = Field(examples=[0.0], description="Percent.")


class CircuitBreaker(Answer):
    """Whether runs use E2B (`closed`), wait for it (`open`), or one of them tries it (`half_open`)."""

    state: Literal["closed", "open", "half_open"]
    failure_count: int = Field(examples=[0], description="Failures of E2B since its last success.")
    failure_threshold: int = Field(examples=[5])
    is_healthy: bool


class WorkflowMetrics(Answer):
    """How many workflows there are, and how many ran in the last 24 hours."""

    total_workflows: int = Field(examples=[4])
    active_workflows: int = Field(examples=[2])


class DatabaseMetrics(Answer):
    """The database."""

    connected: bool
    response_time_ms: float = Field(examples=[0.8])


class Metrics(Answer):
    """Figures for a dashboard."""

    executions: ExecutionMetrics
    error_rate: ErrorRate
    circuit_breaker: CircuitBreaker
    workflows: WorkflowMetrics
    database: DatabaseMetrics
