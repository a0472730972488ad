"""Texts that must not change unnoticed; ``python -m tests.golden`` renews them."""
