"""Every command explains itself, and quickly; errors are a sentence, never a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from typer.testing import CliRunner

from deployments.cli.main import app
from tests.deployments.conftest import Nova, run_nova

COMMANDS = [
    "",
    "up",
    "demo",
    "api",
    "worker",
    "deploy",
    "migrate",
    "key",
    "workflows",
    *(f"workflows {verb}" for verb in ("apply", "validate", "list", "export", "delete", "schedule")),
    *(f"workflows schedule {verb}" for verb in ("list", "add", "pause", "resume", "remove")),
    "runs",
    *(f"runs {verb}" for verb in ("list", "show", "cancel", "retry", "skip")),
    "clients",
    *(f"clients {verb}" for verb in ("add", "list", "remove")),
    "template",
    "template build",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """`--help` says what the command does and what each of its options is for."""
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"Usage: nova{' ' + command if command else ''}" in result.output
    described = [line for line in result.output.splitlines() if line.startswith("│ --")]
    assert described
    assert all(len(line.strip("│ ").split()) > 2 for line in described)


def test_help_loads_nothing_heavy() -> None:
    """Prefect, SQLAlchemy and their like are imported by the commands that need them."""
    heavy = (
        "prefect",
        "sqlalchemy",
        "fastapi",
        "pydantic",
        "httpx",
        "cryptography",
        "psycopg2",
        "pymupdf",
        "e2b",
    )
    code = f"import sys, deployments.cli.main; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_api_is_one_sentence(tmp_path: Path) -> None:
    """It says what to do."""
    done = run_nova("workflows", "list", "--api-url", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("nova: The API at http://127.0.0.1:1 cannot be reached")
    assert "nova up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["api", "worker"])
def test_without_a_key_nothing_starts(nova: Nova, command: str) -> None:
    """The encryption key is asked for, with the way to make one."""
    done = nova(command, DATABASE_URL="postgresql:///nova")
    assert done.returncode == 2
    assert "NOVA_ENCRYPTION_KEY is not set" in done.stderr
    assert "nova key" in done.stderr


@pytest.mark.parametrize("command", ["api", "worker", "deploy", "migrate"])
def test_without_a_database_nothing_starts(nova: Nova, command: str) -> None:
    """DATABASE_URL is asked for."""
    done = nova(command)
    assert done.returncode == 2
    assert "DATABASE_URL is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_answer_is_one_sentence(nova: Nova) -> None:
    """Where PostgreSQL is gone."""
    done = nova("migrate", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nova")
    assert done.returncode == 1
    assert "PostgreSQL does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_key_prints_a_key_that_works(nova: Nova) -> None:
    """One line, good for Fernet."""
    Fernet(nova("key").stdout.strip())


@pytest.mark.parametrize("option", ["--api-port", "--prefect-port"])
def test_a_port_in_use_is_said_before_anything_starts(nova: Nova, data_dir: Path, option: str) -> None:
    """The message names the port and the option; no folder is made."""
    other = "--prefect-port" if option == "--api-port" else "--api-port"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = nova("up", "--data-dir", str(data_dir), option, port, other, "0")
    assert done.returncode == 1
    assert f"Port {port} is in use" in done.stderr
    assert option in done.stderr
    assert not data_dir.exists()
