"""The answers of each operation in the OpenAPI document, with examples."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api import schemas
from api.errors import body_of
from flows.graphs.json_values import dumps, loads

_SENTENCES = {
    400: "There is a workflow named 'Invoice Processing V3' already.",
    404: "There is no workflow 7.",
    409: "1 run(s) were told to stop but still go on.",
    413: "The request is larger than 67108864 bytes, the most that is read.",
    415: "The body must be JSON; send the header Content-Type: application/json.",
    422: "The request is not valid: name: Field required",
    500: "Something went wrong in NOVA. The log tells more under request 6f1c….",
    503: "Prefect's server cannot be reached.",
}
ALWAYS = (500, 503)
"""Errors that every operation may answer with."""


def documented(
    status: int, model: type[BaseModel], *errors: int, sentences: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return the arguments of a route: its status, its answer and these errors, all with examples.

    `sentences` replaces the usual examples of errors, by status.
    """
    told = _SENTENCES | dict(sentences or {})
    responses: dict[int, dict[str, Any]] = {status: {"content": _content(example(model))}}
    for code in sorted({*errors, *ALWAYS}):
        problems = [{"field": "name", "message": "Field required"}] if code == 422 else None
        responses[code] = {
            "model": schemas.Error,
            "description": HTTPStatus(code).phrase,
            "content": _content(body_of(code, told[code], problems)),
        }
        if code == 503:
            responses[code]["headers"] = {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            }
    return {"status_code": status, "response_model": model, "responses": responses}


def example(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of a model as JSON data, made of the examples of its fields."""
    return {name: _field_example(field) for name, field in model.model_fields.items()}


def _field_example(field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    return _type_example(field.annotation)


def _type_example(kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _type_example(next(argument for argument in arguments if argument is not NoneType))
    if origin is Literal:
        return arguments[0]
    if origin is list:
        return [_type_example(arguments[0])]
    if hasattr(kind, "__metadata__"):  # Annotated: its own examples, else those of its type
        given = next((m.examples for m in kind.__metadata__ if getattr(m, "examples", None)), None)
        return given[0] if given else _type_example(arguments[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example(kind)
    return {str: "", int: 1, float: 0.0, bool: True, dict: {}}.get(origin or kind)


def _content(body: Any) -> dict[str, Any]:
    # As text, because FastAPI drops nulls from the document; see `with_examples`.
    return {"application/json": {"example": dumps(body).decode()}}


def with_examples(document: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with its examples as JSON, nulls included. Changes it in place."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                content = answer["content"]["application/json"]
                if isinstance(content.get("example"), str):
                    content["example"] = loads(content["example"])
    return document
