"""RAM to load into, and real kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.memory import GuestRam
from tests.support import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """64 MiB, with ones where the tests load to, so that what a loader leaves alone shows."""
    memory = GuestRam(64 << 20)
    memory.write(0, b"\xff" * (640 << 10))
    memory.write(16 << 20, b"\xff" * (6 << 20))
    yield memory
    memory.close()


@pytest.fixture
def big_ram() -> Iterator[GuestRam]:
    """256 MiB, enough for a distribution's kernel."""
    memory = GuestRam(256 << 20)
    yield memory
    memory.close()


@pytest.fixture(scope="session")
def cloud_kernel() -> bytes:
    return kernels.cloud_amd64()


@pytest.fixture(scope="session")
def i686_kernel() -> bytes:
    return kernels.i686()
