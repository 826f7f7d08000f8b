"""What a look at a graph found: lists of faults and warnings, and the checks that all its parts share."""

from __future__ import annotations

from typing import Any, Final

from flows.graphs.errors import Fault, InvalidValueError
from flows.graphs.json_values import check_value
from flows.graphs.names import quoted
from flows.graphs.validation.code import Program

JsonObject = dict[Any, Any]
"""A JSON object as a caller sent it; its keys need not be strings where Python or YAML made it."""

_NAMED_FIELDS: Final = 10


class Findings:
    """Collects faults and warnings, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[Fault | Program] = []
        """The faults; a program that is still to be compiled stands where its fault would."""
        self.warnings: list[Fault] = []

    def unknown_fields(
        self,
        data: JsonObject,
        known: frozenset[str],
        name: str,
        node: str | None = None,
        edge: int | None = None,
    ) -> None:
        """Warn of the fields that are none of `known`, and check that they can be stored."""
        unknown = [field for field in data if isinstance(field, str) and field not in known]
        if len(unknown) + len(known & data.keys()) < len(data):
            self.fault("invalid-value", f"{capital(name)} has a field whose name is no string.", node, edge)
        if not unknown:
            return
        names = ", ".join(quoted(field) for field in unknown[:_NAMED_FIELDS])
        more = f" and {len(unknown) - _NAMED_FIELDS} more" if len(unknown) > _NAMED_FIELDS else ""
        message = (
            f"{capital(name)} has fields that NOVA does not know: {names}{more}. They are kept, and not used."
        )
        self.warn("unknown-fields", message, node, edge)
        for field in unknown:
            self.value(data[field], f"The field {quoted(field)} of {name}", node, edge)

    def value(self, value: object, name: str, node: str | None = None, edge: int | None = None) -> None:
        """Check that the value of a field that NOVA only stores can be stored."""
        try:
            check_value(value)
        except InvalidValueError as error:
            self.fault("invalid-value", f"{name} cannot be kept: {error}", node, edge)

    def fault(self, code: str, message: str, node: str | None = None, edge: int | None = None) -> None:
        """Note a fault."""
        self.found.append(Fault(code, message, node, edge))

    def warn(self, code: str, message: str, node: str | None = None, edge: int | None = None) -> None:
        """Note a warning."""
        self.warnings.append(Fault(code, message, node, edge))


def capital(text: str) -> str:
    """Begin a sentence with the name of a part of a graph."""
    return text if text.startswith("nodes[") else text[:1].upper() + text[1:]
