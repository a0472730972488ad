"""Measures a pair of our data workers beside a pair of Envoys, in the same run."""
