"""Sandboxes: the nodes' code runs in them."""
