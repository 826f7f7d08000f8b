"""The documentation: every operation with its examples, and examples that are true."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.app import create_app

CONTRACT = {
    ("get", "/"),
    ("get", "/health"),
    ("get", "/health/detailed"),
    ("get", "/metrics"),
    ("post", "/workflows"),
    ("get", "/workflows"),
    ("get", "/workflows/{workflow_id}"),
    ("put", "/workflows/{workflow_id}"),
    ("delete", "/workflows/{workflow_id}"),
    ("post", "/workflows/{workflow_id}/execute"),
    ("get", "/tasks/{task_id}"),
    ("get", "/executions"),
    ("get", "/executions/{execution_id}"),
    ("get", "/executions/{execution_id}/chain"),
}
OURS = {
    ("post", "/tasks/{task_id}/cancel"),
    ("post", "/tasks/{task_id}/retry"),
    ("post", "/executions/{execution_id}/nodes/{step}/skip"),
}

DOCUMENT: dict[str, Any] = create_app().openapi()
OPERATIONS = {
    (method, path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the document around it, so that its references lead somewhere."""
    return {**schema, "components": DOCUMENT["components"]}


def example_of_body(operation: dict[str, Any]) -> Any:
    """The example of an operation's body, from its schema."""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    reference = schema.get("$ref") or schema["anyOf"][0]["$ref"]
    return DOCUMENT["components"]["schemas"][reference.rsplit("/", 1)[1]]["examples"][0]


def test_the_whole_contract_is_there() -> None:
    """Each row is an operation; clients, credentials, schedules and what is done to runs come on top."""
    assert set(OPERATIONS) >= CONTRACT | OURS
    assert len({operation["operationId"] for operation in OPERATIONS.values()}) == len(OPERATIONS)


@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_each_operation_is_documented(key: tuple[str, str]) -> None:
    """A summary, a description, and for each answer a schema and an example that fits it."""
    operation = OPERATIONS[key]
    assert operation["summary"]
    assert operation["description"]
    assert {"500", "503"} <= set(operation["responses"])
    assert ("422" in operation["responses"]) is bool(
        operation.get("parameters") or "requestBody" in operation
    )
    assert ("413" in operation["responses"]) is ("requestBody" in operation)
    for status, answer in operation["responses"].items():
        content = answer["content"]["application/json"]
        assert content["schema"].get("$ref"), status
        Draft202012Validator(resolve(content["schema"])).validate(content["example"])
        if int(status) >= 400:
            assert content["schema"]["$ref"].endswith("/Error")
            assert content["example"]["status_code"] == int(status)


@pytest.mark.parametrize(
    "key", [key for key, operation in OPERATIONS.items() if "requestBody" in operation], ids=" ".join
)
def test_each_body_has_an_example_that_fits(key: tuple[str, str]) -> None:
    """What the documentation offers to send may be sent."""
    operation = OPERATIONS[key]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator(resolve(schema)).validate(example_of_body(operation))


def test_execute_takes_an_idempotency_key() -> None:
    """A header that may be left out, and 409 for a key that stands for another request."""
    operation = OPERATIONS["post", "/workflows/{workflow_id}/execute"]
    (header,) = [one for one in operation["parameters"] if one["in"] == "header"]
    assert (header["name"], header["required"]) == ("Idempotency-Key", False)
    example = operation["responses"]["409"]["content"]["application/json"]["example"]
    assert "Idempotency-Key" in example["error"]


def test_a_503_says_when_to_come_back() -> None:
    """Its header is documented."""
    for operation in OPERATIONS.values():
        assert "Retry-After" in operation["responses"]["503"]["headers"]
