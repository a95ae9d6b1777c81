"""Where Rayvisor keeps its files, and what the environment may say about it. One place.

The folders follow the XDG Base Directory Specification 0.8: a variable that is unset, empty or
not an absolute path counts as unset.
"""

from __future__ import annotations

import os
from pathlib import Path

APP = "rayvisor"


def _folder(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    base = Path(value) if value and Path(value).is_absolute() else Path.home() / fallback
    return base / APP


def cache_dir() -> Path:
    """What can be made again: images, downloaded packages."""
    return _folder("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """What should outlive a restart but is no configuration: logs, snapshots."""
    return _folder("XDG_STATE_HOME", ".local/state")


def config_dir() -> Path:
    """What a person writes."""
    return _folder("XDG_CONFIG_HOME", ".config")


def runtime_dir() -> Path:
    """What lives as long as the login does: sockets, locks; the state folder without a login."""
    return _folder("XDG_RUNTIME_DIR", ".local/state")


def debug() -> bool:
    """Whether RAYVISOR_DEBUG asks for tracebacks."""
    return os.environ.get("RAYVISOR_DEBUG", "") not in {"", "0"}
