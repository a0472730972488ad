"""The lab's driver: a description becomes machines on a network.

Tests and scripts use `Lab` and `down`; everything else is internal.
"""

from lab.driver.errors import LabError
from lab.driver.lab import Lab, down
from lab.driver.plan import Node, Plan

__all__ = ["Lab", "LabError", "Node", "Plan", "down"]
