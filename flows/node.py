"""One node of a run as a Prefect task: what Prefect's UI shows of it."""

from __future__ import annotations

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Crashed, Failed

from flows.engine.errors import InterruptedRunError, LeaseError, LimitError, NodeError, SandboxError
from flows.engine.traversal import Visit
from flows.execution.nodes import NodeRunner
from flows.orchestration.texts import printable

MESSAGE_LIMIT = 2000
"""Characters of an error that are shown in Prefect; the Chain of Work has all of it."""


@task(name="node", task_run_name="{title}", persist_result=False, cache_policy=NO_CACHE, log_prints=False)
async def run_node(runner: NodeRunner, node_id: str, step: int, title: str) -> Visit | State[Visit]:
    """Run one action or decision as a Prefect task that is named `title`; the flow chains them.

    An expected failure is a Failed state that carries its error: raised, Prefect would log it with a
    traceback of NOVA's own lines, where the node's are of interest.
    """
    try:
        return await runner.run(node_id, step)
    except LeaseError as error:
        return Crashed(message=str(error), data=error)
    except (NodeError, SandboxError, LimitError, InterruptedRunError) as error:
        lines = error.traceback if isinstance(error, NodeError) else ""
        get_run_logger().error("%s", printable(lines or str(error)))
        return Failed(message=printable(str(error))[:MESSAGE_LIMIT], data=error)
