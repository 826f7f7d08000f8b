"""`python -m tests.e2b_server --port 0`: run the server and print its URL, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tests.e2b_server.fixture import E2BServer


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2b_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument(
        "--start-delay", type=float, default=0.0, help="seconds that a sandbox takes to start"
    )
    parser.add_argument(
        "--creations-per-second", type=float, default=None, help="more get 429 (default: no limit)"
    )
    parser.add_argument(
        "--at-once", type=int, default=None, help="more sandboxes get 429 (default: no limit)"
    )
    parser.add_argument("--api-key", default=None, help="the only accepted key (default: any)")
    parser.add_argument("--fail", type=float, default=0.0, help="share of the calls that fail, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice of calls that fail")
    options = parser.parse_args()
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    with E2BServer(**vars(options)) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        done.wait()


if __name__ == "__main__":
    main()
