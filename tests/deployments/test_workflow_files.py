"""Workflow files: read, checked without an API, and written so that they read back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.cli import files
from deployments.demo import WORKFLOW_FILE
from flows.graphs.errors import InvalidInputError
from flows.graphs.graph import load_graph
from tests.builders import action, line
from tests.code_check.programs import nested_finally
from tests.deployments.conftest import Nova

HAIRY = " \n\t\r\x85ab:#'\"-|"
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=20) | st.text(HAIRY, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
BILLIONS = "name: n\ngraph_definition:\n  a0: &a0 [more]\n" + "".join(
    f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
"""400 bytes of YAML whose aliases stand for some ten billion."""


def test_the_sample_workflow_is_valid() -> None:
    """What users copy has no fault and no warning."""
    data = files.load(WORKFLOW_FILE)
    assert files.check_graph(WORKFLOW_FILE, data) == []
    assert data["name"] == "Invoice Processing V3"
    assert len(load_graph(data["graph_definition"]).nodes) == 12


@given(value=JSON, as_json=st.booleans())
def test_what_is_written_reads_back_the_same(
    value: Any, as_json: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any JSON value in a graph survives the file, in both formats."""
    data = {"name": "n", "graph_definition": {"nodes": [], "extra": value}}
    file = tmp_path_factory.mktemp("files") / f"workflow.{'json' if as_json else 'yaml'}"
    file.write_text(files.dump(data, as_json), encoding="utf-8", newline="")
    assert json.dumps(files.load(file)) == json.dumps(data)


def test_code_is_written_as_a_block() -> None:
    """An exported YAML file can be read and edited by a person."""
    data = {"name": "n", "graph_definition": line(action("a", "x = 1\nif x:\n    context['x'] = x\n"))}
    assert "code: |\n" in files.dump(data, as_json=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "must hold one workflow"),
        ("name: n\n", "graph_definition: is missing"),
        ("graph_definition: {}\n", "name: must be a text"),
        ("name: n\ngraph_definition: {}\nprioritty: low\n", "prioritty: is not a field"),
        ("name: n\ngraph_definition: {}\nschedules: [{timezone: UTC}]\n", "schedules[0].cron: is missing"),
        ("name: n\ngraph_definition: {}\nschedules: [{cron: '* * * * *', at: 9}]\n", "at: is not a field"),
        ("name: [\n", "is not YAML"),
        ("name: n\ngraph_definition: {nodes: 2026-01-01}\n", "cannot be read"),
        (f"name: n\ngraph_definition: {'[' * 5000}", "cannot be read"),
        ("name: n\ngraph_definition: &a [*a]\n", "cannot be read"),
        (BILLIONS, "more than the 67,108,864 bytes"),
    ],
)
def test_a_file_with_a_wrong_form_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Misspelt fields are no silent losses."""
    file = tmp_path / "w.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError) as raised:
        files.load(file)
    assert says in str(raised.value)
    assert "w.yaml" in str(raised.value)


def test_validate_names_every_fault_by_node_and_line(nova: Nova, tmp_path: Path) -> None:
    """It needs no API, looks at all files, and exits with 2 when one has a fault."""
    graph = line(action("first", "x = 1\ny = (\n"), action("second", "pass", timeout=99))
    (tmp_path / "bad.json").write_text(json.dumps({"name": "n", "graph_definition": graph}))
    (tmp_path / "good.json").write_text(
        json.dumps({"name": "n", "graph_definition": line(action("a", "pass"))})
    )
    done = nova("workflows", "validate", "bad.json", "good.json", "missing.json")
    assert done.returncode == 2
    assert "node first, line 2" in done.stderr
    assert "node second" in done.stderr
    assert "missing.json cannot be read" in done.stderr
    assert "good.json: good, 3 nodes" in done.stdout


def test_validate_bounds_code_as_the_api_does(nova: Nova, tmp_path: Path) -> None:
    """Its length by the same setting, and what compiling it takes: the command ends, and names the node."""
    graph = line(action("long", "#" * 70_000), action("bomb", nested_finally(19)))
    (tmp_path / "large.json").write_text(json.dumps({"name": "n", "graph_definition": graph}))
    done = nova("workflows", "validate", "large.json")
    assert done.returncode == 2
    assert "node long: " in done.stderr
    assert "NOVA_NODE_CODE_LIMIT" in done.stderr
    assert 'node bomb: The code of node "bomb" cannot be checked: it needs' in done.stderr
    graph = line(action("long", "#" * 70_000))
    (tmp_path / "large.json").write_text(json.dumps({"name": "n", "graph_definition": graph}))
    assert nova("workflows", "validate", "large.json", NOVA_NODE_CODE_LIMIT="70000").returncode == 0
