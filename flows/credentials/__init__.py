"""Clients' credentials: encrypted at rest, opened only at the sandbox's edge."""
