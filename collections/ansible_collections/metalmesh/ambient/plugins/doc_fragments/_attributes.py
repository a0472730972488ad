# SPDX-License-Identifier: Apache-2.0

"""Documentation shared by the modules of metalmesh.ambient."""

from __future__ import annotations


class ModuleDocFragment:
    """What every module of the collection supports."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Computes the same plan and reports it, without changing anything.
  diff_mode:
    support: full
    description: Returns what changes, per object.
  idempotent:
    support: full
    description: A second run with the same arguments reports no change.
  platform:
    platforms: posix
    support: full
    description: Linux with systemd.
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Only reads, so that check mode makes no difference.
  diff_mode:
    support: N/A
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
  platform:
    platforms: posix
    support: full
    description: Linux with systemd.
"""
