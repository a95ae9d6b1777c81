"""The errors Rayvisor raises. Each is picklable and reads as one line."""

from __future__ import annotations


class RayvisorError(Exception):
    """Base of every error a caller may want to catch.

    The message is one line: what is wrong, what was found, and the way out.
    """


class ConfigError(RayvisorError):
    """A request, option or file cannot be used as it stands."""


class LoaderError(ConfigError):
    """A kernel, initrd or module cannot be loaded into this machine."""


class ImageError(ConfigError):
    """An image is unknown, damaged, or could not be built."""


class EngineError(RayvisorError):
    """The native core or Unicorn cannot do what the machine needs."""


class SnapshotError(RayvisorError):
    """A snapshot cannot be taken or restored."""


class CorruptStateError(SnapshotError):
    """State from outside the process is malformed or out of range."""


class MachineStateError(RayvisorError):
    """The operation does not fit the machine's power state."""


class MigrationError(RayvisorError):
    """A migration failed; the message says where the VM runs now."""


class ClusterError(RayvisorError):
    """No cluster, or the cluster cannot be reached."""


class PlacementError(ClusterError):
    """No host can take the VM."""


class UnknownVmError(ClusterError):
    """No VM of that name, or it is gone."""
