"""Texts that must not change unnoticed; ``make golden`` or ``python -m tests.golden`` renews them."""
