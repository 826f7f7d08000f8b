"""Every change of an execution's state: one function each, and nowhere else.

Each docstring says from which status to which a function leads; `flows/graphs/row_states.py` lists them all.
A process that runs an execution has its lease; without it its changes are refused: LeaseLostError. What comes
from outside (a refusal, a cancellation, a person's retry) changes a row only if it is as it was seen.
"""
