"""Policies: translation and evaluation; pure."""
