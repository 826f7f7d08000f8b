"""The filters of Prefect's API, as far as NOVA's code and tests use them; any other is refused with 501."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from tests.stand_in.records import JSON, Deployment, FlowRun, Run, State, TaskRun
from tests.stand_in.world import Refusal, World, moment

T = TypeVar("T")
Test = Callable[[T], bool]
Makers = Mapping[str, Callable[[Any], Test[T]]]

MOST = 200
"""The most records in one answer (`PREFECT_SERVER_API_DEFAULT_LIMIT`)."""
_EVER = datetime.max.replace(tzinfo=UTC)


def flow_runs(world: World, body: JSON) -> list[FlowRun]:
    """The flow runs that a body of `/flow_runs/filter` asks for, all pages of them."""
    tables = world.tables
    test = _matching(
        {
            "flow_runs": lambda wanted: flow_run_test(wanted),
            "flows": lambda wanted: _of_flow(world, wanted),
            "deployments": lambda wanted: _of_deployment(world, wanted),
            "work_pools": lambda wanted: _of_pool(world, wanted),
            "work_pool_queues": lambda wanted: _of_queue(world, wanted),
        },
        {key: body.get(key) for key in (*_CRITERIA, "task_runs")},
    )
    named = ((body.get("flow_runs") or {}).get("id") or {}).get("any_")
    if named is not None and (body["flow_runs"].get("operator") or "and_") == "and_":
        return [run for one in dict.fromkeys(named) if (run := tables.flow_runs.get(one)) and test(run)]
    return [run for run in tables.flow_runs.values() if test(run)]


def task_runs(world: World, body: JSON) -> list[TaskRun]:
    """The task runs that a body of `/task_runs/filter` asks for, all pages of them."""
    own = task_run_test(body.get("task_runs") or {})
    asks_for_flow_runs = any(body.get(key) for key in _CRITERIA)
    parents = (
        {run.id for run in flow_runs(world, {**body, "task_runs": None})} if asks_for_flow_runs else None
    )
    return [
        run
        for run in world.tables.task_runs.values()
        if own(run) and (parents is None or run.flow_run_id in parents)
    ]


def deployments(world: World, body: JSON) -> list[Deployment]:
    """The deployments that a body of `/deployments/filter` asks for, by their names, all pages of them."""
    for key in ("flow_runs", "task_runs", "work_pool_queues"):
        _only_empty(key, body.get(key))
    own = deployment_test(body.get("deployments") or {})
    of_flow = _of_flow(world, body.get("flows") or {})
    of_pool = _of_pool(world, body["work_pools"]) if body.get("work_pools") else _anything
    found = [one for one in world.tables.deployments.values() if own(one) and of_flow(one) and of_pool(one)]
    return sorted(found, key=lambda one: one.name)


def page(found: Sequence[T], body: JSON) -> Sequence[T]:
    """The page of them that a body asks for."""
    limit, offset = body.get("limit"), body.get("offset") or 0
    limit = MOST if limit is None else limit
    if limit < 0:
        raise Refusal(422, "Invalid limit: must be greater than or equal to 0.")
    if limit > MOST:
        raise Refusal(422, f"Invalid limit: must be less than or equal to {MOST}.")
    return found[offset : offset + limit]


def in_order(found: list[FlowRun], sort: str | None) -> list[FlowRun]:
    """Flow runs in the order that a body asks for; those without the time asked for come last or first."""
    match sort or "ID_DESC":
        case "ID_DESC":
            return sorted(found, key=lambda run: run.id, reverse=True)
        case "NAME_ASC" | "NAME_DESC":
            return sorted(found, key=lambda run: run.name, reverse=sort == "NAME_DESC")
        case "EXPECTED_START_TIME_ASC" | "EXPECTED_START_TIME_DESC":
            by_time: Callable[[FlowRun], datetime] = lambda run: run.expected_start_time or _EVER  # noqa: E731
        case "START_TIME_ASC" | "START_TIME_DESC":
            by_time = lambda run: run.start_time or run.expected_start_time or _EVER  # noqa: E731
        case "NEXT_SCHEDULED_START_TIME_ASC":
            by_time = lambda run: run.next_scheduled_start_time or _EVER  # noqa: E731
        case "END_TIME_DESC":
            by_time = lambda run: run.end_time or _EVER  # noqa: E731
        case unknown:
            raise Refusal(422, f"There is no order {unknown!r}.")
    return sorted(found, key=by_time, reverse=(sort or "").endswith("_DESC"))


def flow_run_test(wanted: JSON) -> Test[FlowRun]:
    """Whether a flow run is as wanted."""
    return _matching(
        {
            "id": lambda wanted: _among(wanted, lambda run: run.id),
            "name": lambda wanted: _named(wanted, lambda run: run.name),
            "tags": lambda wanted: _tagged(wanted, lambda run: run.tags),
            "deployment_id": lambda wanted: _among(wanted, lambda run: run.deployment_id),
            "work_queue_name": lambda wanted: _among(wanted, lambda run: run.queue_name),
            "idempotency_key": lambda wanted: _among(wanted, lambda run: run.idempotency_key),
            "state": _state_test,
            "expected_start_time": lambda wanted: _between(wanted, lambda run: run.expected_start_time),
            "next_scheduled_start_time": lambda wanted: _between(
                wanted, lambda run: run.next_scheduled_start_time
            ),
            "start_time": lambda wanted: _between(wanted, lambda run: run.start_time),
            "end_time": lambda wanted: _between(wanted, lambda run: run.end_time),
        },
        wanted,
    )


def task_run_test(wanted: JSON) -> Test[TaskRun]:
    """Whether a task run is as wanted."""
    return _matching(
        {
            "id": lambda wanted: _among(wanted, lambda run: run.id),
            "name": lambda wanted: _named(wanted, lambda run: run.name),
            "flow_run_id": lambda wanted: _among(wanted, lambda run: run.flow_run_id),
            "state": _state_test,
        },
        wanted,
    )


def deployment_test(wanted: JSON) -> Test[Deployment]:
    """Whether a deployment is as wanted."""
    return _matching(
        {
            "id": lambda wanted: _among(wanted, lambda one: one.id),
            "name": lambda wanted: _named(wanted, lambda one: one.name),
            "tags": lambda wanted: _tagged(wanted, lambda one: one.fields["tags"]),
            "paused": lambda wanted: lambda one: one.paused == wanted["eq_"],
            "work_queue_name": lambda wanted: _among(wanted, lambda one: one.queue_name),
        },
        wanted,
    )


_CRITERIA = ("flow_runs", "flows", "deployments", "work_pools", "work_pool_queues")


def _of_flow(world: World, wanted: JSON) -> Test[Any]:
    test: Test[Any] = _matching(
        {
            "id": lambda wanted: _among(wanted, lambda flow: flow.id),
            "name": lambda wanted: _named(wanted, lambda flow: flow.name),
        },
        wanted,
    )
    return lambda one: test(world.tables.flows[one.flow_id])


def _of_deployment(world: World, wanted: JSON) -> Test[FlowRun]:
    test = deployment_test(wanted)

    def matches(run: FlowRun) -> bool:
        deployment = world.tables.deployments.get(run.deployment_id or "")
        return deployment is not None and test(deployment)

    return matches


def _of_pool(world: World, wanted: JSON) -> Test[Any]:
    test: Test[Any] = _matching(
        {
            "id": lambda wanted: _among(wanted, lambda pool: pool.id),
            "name": lambda wanted: _among(wanted, lambda pool: pool.name),
            "type": lambda wanted: _among(wanted, lambda pool: pool.type),
        },
        wanted,
    )

    def matches(one: FlowRun | Deployment) -> bool:
        pool = world.pool_of_queue(one.queue_id)
        return pool is not None and test(pool)

    return matches


def _of_queue(world: World, wanted: JSON) -> Test[FlowRun]:
    test: Test[Any] = _matching(
        {
            "id": lambda wanted: _among(wanted, lambda queue: queue.id),
            "name": lambda wanted: _among(wanted, lambda queue: queue.name),
        },
        wanted,
    )

    def matches(run: FlowRun) -> bool:
        queue = world.tables.queues.get(run.queue_id or "")
        return queue is not None and test(queue)

    return matches


def _state_test(wanted: JSON) -> Test[Run]:
    return _matching(
        {
            "type": lambda wanted: _among(wanted, lambda run: _state(run).type if run.state else None),
            "name": lambda wanted: _among(wanted, lambda run: _state(run).name if run.state else None),
        },
        wanted,
    )


def _state(run: Run) -> State:
    assert run.state is not None
    return run.state


def _matching(makers: Makers[T], wanted: JSON) -> Test[T]:
    """Put the criteria of a filter together by its operator; one without criteria matches all."""
    tests: list[Test[T]] = []
    operator = "and_"
    for key, value in wanted.items():
        if key == "operator":
            operator = value or "and_"
        elif key in makers:
            if value is not None:
                tests.append(makers[key](value))
        else:
            _only_empty(key, value)
    if not tests:
        return _anything
    if len(tests) == 1:
        return tests[0]
    if operator == "or_":
        return lambda one: any(test(one) for test in tests)
    return lambda one: all(test(one) for test in tests)


def _among(wanted: JSON, value: Callable[[Any], str | None]) -> Test[Any]:
    """The criteria `any_`, `not_any_` and `is_null_`; nothing is among none, and NULL is in no list."""
    chosen, excluded, null = wanted.get("any_"), wanted.get("not_any_"), wanted.get("is_null_")
    _no_other(wanted, "any_", "not_any_", "is_null_", "operator")
    tests: list[Test[Any]] = []
    if chosen is not None:
        included = set(chosen)
        tests.append(lambda one: value(one) in included)
    if excluded:
        left_out = set(excluded)
        tests.append(lambda one: (found := value(one)) is not None and found not in left_out)
    if null is not None:
        tests.append(lambda one: (value(one) is None) == null)
    if wanted.get("operator") == "or_" and len(tests) > 1:
        return lambda one: any(test(one) for test in tests)
    return lambda one: all(test(one) for test in tests)


def _named(wanted: JSON, value: Callable[[Any], str]) -> Test[Any]:
    part = wanted.get("like_")
    among = _among({key: wanted[key] for key in wanted if key != "like_"}, value)
    if not part:
        return among
    return lambda one: among(one) and part.lower() in value(one).lower()


def _tagged(wanted: JSON, value: Callable[[Any], list[str]]) -> Test[Any]:
    everyone, anyone = wanted.get("all_"), wanted.get("any_")
    _no_other(wanted, "all_", "any_", "operator")
    return lambda one: (
        (not everyone or set(everyone) <= set(value(one)))
        and (anyone is None or bool(set(anyone) & set(value(one))))
    )


def _between(wanted: JSON, value: Callable[[Any], datetime | None]) -> Test[Any]:
    before, after = moment(wanted.get("before_")), moment(wanted.get("after_"))
    _no_other(wanted, "before_", "after_")
    return lambda one: (
        (at := value(one)) is not None and (before is None or at <= before) and (after is None or at >= after)
    )


def _anything(_: Any) -> bool:
    return True


def _no_other(wanted: JSON, *known: str) -> None:
    for key in wanted.keys() - set(known):
        _only_empty(key, wanted[key])


def _only_empty(key: str, value: Any) -> None:
    if value is not None and value != {}:
        raise Refusal(501, f"The stand-in knows no filter {key!r}: {value!r}")
