"""`nova demo --exit`: the line of the README, from an empty folder to a stored invoice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from deployments.cli import processes
from tests.servers import clean_environment, living, wait_until


def test_the_demo_ends_in_success_and_shows_what_it_did(data_dir: Path, tmp_path: Path) -> None:
    """In under 120 seconds: progress, the Chain of Work, what landed, the addresses; then all is stopped."""
    options = ["--exit", "--data-dir", str(data_dir), "--api-port", "0", "--prefect-port", "0"]
    log = tmp_path / "terminal.log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "demo", *options],
            cwd=tmp_path,
            env=clean_environment(E2B_API_KEY="not-used-by-the-demo"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    # Looked up while it runs: who outlives a parent is nobody's child, and of the children of this process
    # other tests' servers start some at any time.
    family: set[psutil.Process] = set()

    def ended() -> bool:
        family.update(processes.family(demo.pid))
        return demo.poll() is not None

    try:
        wait_until(ended, 120, "the demo to end")
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    said = log.read_text()
    assert demo.returncode == 0, said
    for words in (
        "✓ Extract the invoice",
        "✓ More than 1,000? → false",
        "task SUCCESS",
        "false → store_invoice",
        "amount = 845.5",
        "billing@acme.example · 845.50 · EUR",
        "/runs/flow-run/",
        "/docs",
    ):
        assert words in said
    assert len(family) > 10
    assert living(family) == []
