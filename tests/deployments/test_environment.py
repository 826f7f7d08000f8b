"""What the parts of `nova up` are told, whatever the user's environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.cli import environment
from flows.graphs.errors import ConfigurationError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a `.env`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_dotenv_is_read_and_the_environment_wins(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere in NOVA."""
    (empty_folder / ".env").write_text("E2B_TEMPLATE=from-file\nNOVA_RUN_TIMEOUT=77\n")
    monkeypatch.setenv("E2B_TEMPLATE", "from-environment")
    found = environment.outside()
    assert found["E2B_TEMPLATE"] == "from-environment"
    assert found["NOVA_RUN_TIMEOUT"] == "77"


def test_what_points_elsewhere_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile, a cloud workspace or another server must not get between the parts; the rest is kept."""
    foreign = (
        "PREFECT_PROFILE",
        "PREFECT_API_KEY",
        "PREFECT_API_URL",
        "PREFECT_SERVER_API_PORT",
        "PREFECT_HOME",
    )
    kept = ("PREFECT_LOGGING_LEVEL", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_WORKER_QUERY_SECONDS")
    for name in (*foreign, *kept):
        monkeypatch.setenv(name, "x")
    found = environment.outside()
    assert not set(foreign) & set(found)
    assert set(kept) <= set(found)


def test_the_parts_speak_to_each_other(tmp_path: Path) -> None:
    """Addresses, key and databases are ours; what the user set beside them is handed on."""
    found = environment.parts(
        {"PREFECT_WORKER_QUERY_SECONDS": "5", "E2B_API_KEY": "key", "DATABASE_URL": "postgresql:///other"},
        database_url="postgresql:///nova",
        prefect_database_url="postgresql+asyncpg:///prefect",
        encryption_key="k",
        api_port=1,
        prefect_port=2,
        prefect_home=tmp_path,
    )
    assert found["DATABASE_URL"] == "postgresql:///nova"
    assert found["PREFECT_API_URL"] == "http://127.0.0.1:2/api"
    assert found["PREFECT_HOME"] == str(tmp_path)
    assert found["PREFECT_WORKER_QUERY_SECONDS"] == "5"
    assert found["E2B_API_KEY"] == "key"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_dotenv_that_is_no_text_is_a_sentence(empty_folder: Path) -> None:
    """Not a traceback."""
    (empty_folder / ".env").write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read"):
        environment.outside()
