"""Rayvisor: unmodified x86 operating systems in ordinary processes, spread over Ray.

`Cluster` and `VmSpec` are the public API. They are imported when first used, so that
`import rayvisor`, the command line and a VM's process do not pay for what they do not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

__all__ = ["Cluster", "VmSpec", "__version__"]

__version__ = "0.1.0"

_HOMES: Final = {"Cluster": "rayvisor.runtime.cluster", "VmSpec": "rayvisor.runtime.api"}


if TYPE_CHECKING:
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster import Cluster
else:  # out of a type checker's sight, which would believe in every name

    def __getattr__(name: str) -> object:
        """A public name, imported on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names, so that a notebook completes them before they are imported."""
    return sorted({*globals(), *__all__})
