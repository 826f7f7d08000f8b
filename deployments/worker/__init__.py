"""The `nova` worker type: flows as asyncio tasks of one warm process.

`worker.py` takes runs and lets go of them, `flowthread.py` is where they run, `running.py` is one of them,
`wakeup.py` and `stops.py` listen to Prefect, `loading.py` finds a run's flow. `engine.py` is the one file
that uses what Prefect does not promise to keep.
"""
