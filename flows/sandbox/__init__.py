"""Sandboxes: where the code of nodes runs."""
