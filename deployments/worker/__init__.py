"""The `nova` worker type: flows as asyncio tasks of one warm process.

`worker.py` finds due runs and stops them at its end. `claims.py` claims one, `lifetime.py` brings it from its
claim to its end, `active_run.py` is one of them, `flow_thread.py` is the thread in which all of them run.
`events.py` and `stop_requests.py` listen to Prefect, `flow_loader.py` finds a run's flow. `prefect_engine.py`
is the one file that uses what Prefect does not promise to keep.
"""
