"""Finds a run's flow, without asking Prefect twice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint

NOVA_ENTRYPOINT = "flows.execute_workflow.execute_workflow"

_NO_RESULTS = Path(tempfile.gettempdir()) / "nova-results"
"""The result storage of flows that persist no results: if none is given, Prefect is asked for its default."""


class FlowNotLoadedError(Exception):
    """This worker cannot run the flow; the message says why."""


class FlowLoader:
    """Loads flows by their entry points and keeps them."""

    def __init__(self) -> None:
        self._by_flow_id: dict[UUID, Flow[..., Any]] = {}
        self._by_entrypoint: dict[str, Flow[..., Any]] = {}

    def warm_up(self) -> None:
        """Import NOVA's own flow, so that the first run does not wait for the import."""
        self._load(NOVA_ENTRYPOINT)

    async def find(self, flow_run: FlowRun, client: PrefectClient) -> Flow[..., Any]:
        """Return the flow of a run; raises FlowNotLoadedError.

        NOVA's own flow has thousands of deployments, all with the same entry point: it is known by its flow
        id. For any other flow the run's deployment is read each time, since entry points may differ.
        """
        if (known := self._by_flow_id.get(flow_run.flow_id)) is not None:
            return known
        entrypoint = await _entrypoint(flow_run, client)
        flow = self._load(entrypoint)
        if entrypoint == NOVA_ENTRYPOINT:
            self._by_flow_id[flow_run.flow_id] = flow
        return flow

    def knows_as_nova(self, flow_run: FlowRun) -> bool:
        """Return whether a run is of NOVA's own flow. Call `find` first: this does not ask Prefect."""
        return flow_run.flow_id in self._by_flow_id

    def _load(self, entrypoint: str) -> Flow[..., Any]:
        if (known := self._by_entrypoint.get(entrypoint)) is not None:
            return known
        try:
            flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except Exception as error:
            raise FlowNotLoadedError(f"{entrypoint} could not be imported: {error!r}") from error
        if not flow.isasync or flow.isgenerator:
            raise FlowNotLoadedError(
                f"{entrypoint} is not an async function. Worker type nova runs all flows in one loop, "
                "where it would stop the others: make it async, or use a pool of type process."
            )
        if flow.persist_result is False and flow.result_storage is None:
            flow = flow.with_options(result_storage=_NO_RESULTS)
        self._by_entrypoint[entrypoint] = flow
        return flow


async def _entrypoint(flow_run: FlowRun, client: PrefectClient) -> str:
    if flow_run.deployment_id is None:
        raise FlowNotLoadedError("The run has no deployment. Worker type nova runs deployments only.")
    try:
        deployment = await client.read_deployment(flow_run.deployment_id)
    except ObjectNotFound:
        raise FlowNotLoadedError("The run's deployment was deleted.") from None
    entrypoint = deployment.entrypoint or ""
    if not entrypoint or ":" in entrypoint:
        raise FlowNotLoadedError(
            f"The deployment's entry point is {entrypoint or 'missing'}; worker type nova needs a module "
            f"path like {NOVA_ENTRYPOINT}. Pools of type process take file paths as well."
        )
    return entrypoint
