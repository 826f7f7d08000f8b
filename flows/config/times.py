"""Times of patience, grace and leases that depend on each other, in seconds, derived from one another.

A time that depends on no other stands where it is used. `deployments/compose.yaml` repeats some of these; a
test holds it to them.
"""

from __future__ import annotations

# -- one answer of each part --------------------------------------------------------------------------

PREFECT_ANSWER = 10.0
"""What one call of Prefect may take (default of NOVA_PREFECT_TIMEOUT)."""
PREFECT_LOOK = PREFECT_ANSWER / 2
"""What a look may take that is made again soon: a worker's, or a health check's."""
HEALTH = 2 * PREFECT_LOOK + 2
"""What an answer about health may take: two looks one after the other, and some time for itself."""
SANDBOX_REQUEST = 30.0
"""What one request to a sandbox's provider may take."""
SANDBOX_CREATION = 2 * SANDBOX_REQUEST
"""What the making of a sandbox may take: the provider starts a machine meanwhile."""

# -- a run is handed to Prefect -----------------------------------------------------------------------

TURN = 3 * PREFECT_ANSWER
"""How long a run waits for its turn to be handed to Prefect, when many come at once."""
UNSUBMITTED = TURN
"""From when on a run that has not reached Prefect counts as forgotten: its API has tried for as long."""

# -- leases -------------------------------------------------------------------------------------------

LEASE = 30.0
"""From its last sign of life until a worker counts as dead (default of NOVA_LEASE_SECONDS)."""
RECOVERY_INTERVAL = LEASE / 6
"""Between two looks for runs that nobody runs (default of NOVA_RECOVERY_INTERVAL): what a dead worker costs
is its lease, and this adds little to it."""
LOOK_AFTER_ONE = 2 * PREFECT_ANSWER
"""What looking after one run may take: a slow answer of Prefect's, and another."""
RECOVERY_LEASE = 1.5 * LOOK_AFTER_ONE
"""How long the lease lasts that is taken to look after a run: longer, by a slow statement or two."""
STRAY = LEASE
"""From when on the end of a node that Prefect was not told of does not come any more: its worker is dead."""


def renewal(lease: float) -> float:
    """Between two signs of life: two may get lost."""
    return lease / 3


def renewal_again(lease: float) -> float:
    """Until a renewal that failed is tried again: several times before the lease runs out."""
    return lease / 10


def calm(lease: float) -> float:
    """After an outage of the database, until leases may count as run out: longer than `renewal`."""
    return lease / 2


def sweep_lock(interval: float) -> float:
    """From a sweeper's last sign of life until another sweeps: longer than between two of its rounds."""
    return max(1.5 * PREFECT_ANSWER, 3 * interval)


# -- the circuit breaker ------------------------------------------------------------------------------

BREAKER_LOOK = 10.0
"""Until those that wait for the breaker ask it again, at the latest."""
BREAKER_PROBE = SANDBOX_CREATION + 2 * SANDBOX_REQUEST
"""How long the one that tries E2B for all is waited for: its sandbox is made, its runner started."""
PREFECT_PREFETCH = 10.0
"""How far ahead Prefect's own worker looks for runs."""
LEAST_BREAKER_PAUSE = 2 * PREFECT_PREFETCH
"""The shortest wait of a run for the breaker: Prefect's own worker dies of a run that it finds before the
run's last process has ended."""

# -- the end of a process: from SIGTERM until it is killed ---------------------------------------------

CLOSING = 10.0
"""What it takes to end a process's own work: a round of the reconciler, connections, threads."""
API_REQUESTS = 10.0
"""How long requests may go on."""
API_DRAIN = TURN
"""How long work may go on that must come to its end though its request may not: it may wait for its turn."""
API_STOP = API_REQUESTS + API_DRAIN + CLOSING
"""Until an API that does not end is killed."""
WORKER_GRACE = 30.0
"""How long runs may go on before they are requeued (default of NOVA_WORKER_GRACE)."""
REQUEUE = PREFECT_ANSWER
"""How long they have to end after they were told to; then those that hang are requeued from outside."""
REQUEUE_HUNG = PREFECT_LOOK
"""What it may take to requeue those."""
PREFECT_STOP = 30.0
"""Until Prefect's server is killed."""
POSTGRES_STOP = 60.0
"""Until PostgreSQL is killed: it writes out first what it has in memory."""


def worker_stop(grace: float) -> float:
    """Until a worker that does not end is killed."""
    return grace + REQUEUE + REQUEUE_HUNG + CLOSING
