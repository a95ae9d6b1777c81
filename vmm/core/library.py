"""Finding and loading the Unicorn library and, once a process, the clock it runs on."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rayvisor.vmm.core import _native
from rayvisor.vmm.errors import EngineError

LIBRARY = "libunicorn.so.2"


def unicorn_library() -> Path:
    """The shared library inside the installed unicorn package, which is not imported.

    Raises:
        EngineError: it is not installed.
    """
    spec = find_spec("unicorn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "lib" / LIBRARY
        if path.is_file():
            return path
    raise EngineError("the unicorn package is not installed: pip install unicorn==2.1.4")


@cache
def load_engine() -> None:
    """Load and prove the engine; later calls cost nothing.

    Raises:
        EngineError: it is missing, or not the version and build that the core knows.
    """
    _native.load(unicorn_library())


@cache
def host_tsc_hz() -> int:
    """Ticks a second of this host's TSC, measured once a process."""
    return _native.measure_tsc_hz()
