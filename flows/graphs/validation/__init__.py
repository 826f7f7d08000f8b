"""Validation of graphs: every fault and warning, by node and edge."""
