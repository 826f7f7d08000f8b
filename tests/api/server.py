"""The API in a real uvicorn server, as a process: for what ASGI alone does not show."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.servers import ServerProcess, clean_environment, free_port


class ApiServer(ServerProcess):
    """`uvicorn api.app:create_app --factory` on a port of the system; ready when made."""

    def __init__(
        self, folder: Path, fork_server: Path | None = None, *, wait: bool = True, **environment: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory"]
        root = str(Path(__file__).parents[2])
        super().__init__(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            clean_environment(PYTHONPATH=root, PREFECT_HOME=str(folder / "prefect"), **environment),
            folder / "api.log",
            fork_server,
        )
        if wait:
            try:
                self.wait_for_http(f"{self.url}/")
            except BaseException:
                self.stop()
                raise
