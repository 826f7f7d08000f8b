"""How a node is to be run: for how long, how often, and whether again after an interruption."""

from __future__ import annotations

from typing import Final, Literal

from flows.graphs.validation.findings import Findings, JsonObject

OnInterrupt = Literal["fail", "rerun"]

MIN_TIMEOUT: Final = 1
MAX_TIMEOUT: Final = 60
"""Seconds; the old build's bounds of a node's `timeout`."""
MAX_RETRIES: Final = 10
"""The most that a node's `retries` may say."""
FIELDS: Final = frozenset(("timeout", "retries", "on_interrupt", "executor"))


def check_policy(
    findings: Findings, kind: str | None, node: JsonObject, name: str, node_id: str | None
) -> None:
    """Find what is wrong with these fields of a node; `kind` is its type, None where that is unknown."""
    _timeout(findings, node.get("timeout"), name, node_id)
    retries = _retries(findings, node.get("retries"), name, node_id)
    on_interrupt = _on_interrupt(findings, node.get("on_interrupt"), name, node_id)
    if kind in ("start", "end"):
        for field, value in (("retries", retries), ("on_interrupt", on_interrupt)):
            if value is not None:
                message = f"The {field} of {name} is ignored: a node of type {kind} runs nothing."
                findings.warn(f"ignored-{field.replace('_', '-')}", message, node_id)
    elif retries and on_interrupt == "fail":
        message = (
            f"The retries of {name} do not apply: with on_interrupt fail it is never started a second time."
        )
        findings.warn("ignored-retries", message, node_id)
    _executor(findings, node.get("executor"), name, node_id)


def _timeout(findings: Findings, value: object, name: str, node_id: str | None) -> None:
    if value is None:
        return
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    if not MIN_TIMEOUT <= number <= MAX_TIMEOUT:  # written so that NaN is out of range
        message = f"The timeout of {name} must be a number of seconds from {MIN_TIMEOUT} to {MAX_TIMEOUT}."
        findings.fault("invalid-timeout", message, node_id)


def _retries(findings: Findings, value: object, name: str, node_id: str | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRIES:
        message = f"The retries of {name} must be a whole number from 0 to {MAX_RETRIES}."
        findings.fault("invalid-retries", message, node_id)
        return None
    return value


def _on_interrupt(findings: Findings, value: object, name: str, node_id: str | None) -> str | None:
    if value is None:
        return None
    if value not in ("fail", "rerun"):
        message = f'The on_interrupt of {name} must be "fail" (never start it a second time) or "rerun".'
        findings.fault("invalid-on-interrupt", message, node_id)
        return None
    return str(value)


def _executor(findings: Findings, value: object, name: str, node_id: str | None) -> None:
    if value is None or value == "e2b":
        return
    message = f'The executor of {name} is ignored: a setting says where nodes run. Write "e2b" or nothing.'
    findings.warn("ignored-executor", message, node_id)
    findings.value(value, f"The executor of {name}", node_id)
