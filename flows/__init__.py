"""Prefect flows, and the plain Python packages under them."""
