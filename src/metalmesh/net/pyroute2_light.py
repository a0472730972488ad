"""pyroute2 without its package file, which imports every subsystem it has.

``import pyroute2`` costs 200 ms and 16 MB (nl80211, nftables, an SQL mirror of the kernel, ...);
what the mesh needs of it costs half. A stand-in package is therefore registered first: submodules
load as usual, and whoever asks it for any other name gets the real package after all.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import NetworkError

if TYPE_CHECKING:
    from types import ModuleType

_NAME: Final = "pyroute2"


def load(submodule: str) -> Any:
    """Import ``pyroute2.SUBMODULE`` and nothing it does not need."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _stand_in()
    return importlib.import_module(f"{_NAME}.{submodule}")


def _stand_in() -> ModuleType:
    found = importlib.util.find_spec(_NAME)
    if found is None or found.loader is None:
        raise NetworkError("the Python package pyroute2 is missing: install metalmesh anew")
    loader = found.loader
    bare = importlib.machinery.ModuleSpec(_NAME, None, is_package=True)
    bare.submodule_search_locations = list(found.submodule_search_locations or ())
    module = importlib.util.module_from_spec(bare)

    def complete(name: str) -> Any:
        if importlib.util.find_spec(f"{_NAME}.{name}") is not None:
            return importlib.import_module(f"{_NAME}.{name}")
        if name.startswith("__"):
            raise AttributeError(name)
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = complete
    return module
