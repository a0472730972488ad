"""Faults on a converged lab, with their documented outcome: ``python -m tests.chaos``."""
