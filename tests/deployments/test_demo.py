"""`nova demo --exit`: the line of the README, from an empty folder to a stored invoice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.servers import clean_environment


def test_the_demo_ends_in_success_and_shows_what_it_did(data_dir: Path, tmp_path: Path) -> None:
    """In under 120 seconds: progress, the Chain of Work, what landed, the addresses; then all is stopped."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    options = ["--exit", "--data-dir", str(data_dir), "--api-port", "0", "--prefect-port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "demo", *options],
        cwd=tmp_path,
        env=clean_environment(E2B_API_KEY="not-used-by-the-demo"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "✓ Take the PDF apart",
        "✓ More than 1,000? → false",
        "task SUCCESS",
        "false → store_invoice",
        "amount = 845.5",
        "billing@acme.example · 845.50 · EUR",
        "/runs/flow-run/",
        "/docs",
    ):
        assert words in done.stdout
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
