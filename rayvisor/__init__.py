"""Rayvisor: unmodified x86 operating systems in ordinary processes, spread over Ray.

`Cluster` and `VmSpec` are the public API. They are imported when first used, so that
`import rayvisor`, the command line and a VM's process do not pay for what they do not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayvisor.runtime import Cluster, VmSpec

__all__ = ["Cluster", "VmSpec", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """A public name, imported on first use (PEP 562)."""
    if name not in {"Cluster", "VmSpec"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module("rayvisor.runtime"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, so that a notebook completes them before they are imported."""
    return sorted({*globals(), *__all__})
