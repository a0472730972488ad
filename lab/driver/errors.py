"""What can go wrong with a lab. Every message names the object and the remedy.

LabError
├── InventoryError   the description of the lab is wrong
├── PreflightError   the host lacks something
├── ImageError       the node image could not be built
├── NetworkError     the fabric could not be wired
├── MachineError     a machine did not start, stop or answer
└── LeftoverError    `down` could not remove everything
"""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors the lab reports to its user."""


class InventoryError(LabError):
    """The description of the lab is wrong."""


class PreflightError(LabError):
    """The host lacks something the lab needs."""


class ImageError(LabError):
    """The node image could not be built."""


class NetworkError(LabError):
    """The fabric could not be wired."""


class MachineError(LabError):
    """A machine did not start, stop or answer in time."""


class LeftoverError(LabError):
    """Objects of the lab are still there after taking it down."""
