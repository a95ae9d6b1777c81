"""What may be asked of a migration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rayvisor.vmm.errors import ConfigError

PAGE_BYTES: Final = 4096
MIB: Final = 1 << 20


class Codec(StrEnum):
    """How the pages of a frame are packed."""

    RAW = "raw"
    LZ4 = "lz4"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class MigrationConfig:
    """Limits and choices of one migration.

    Attributes:
        downtime_s: How long the guest may stand still, in seconds: the last round waits for it.
        bandwidth_bytes_per_s: At most so much is sent while the guest runs; None for no limit.
        timeout_s: Given up when the guest has not been stopped for the move by then.
        max_rounds: Given up, or post-copy, after so many rounds.
        auto_converge: Slow the vCPU down, in steps, when rounds do not get smaller; not where
            post-copy is allowed.
        post_copy: When rounds do not get smaller, run at the destination at once, and let the pages
            follow. Until they have, losing either side loses the VM.
        reply_timeout_s: How long the other side may take to answer.
        stop_timeout_s: How long the guest may stand still before the move is called off, and, after
            COMMIT, how long the destination may take to say that it runs.
        settle_timeout_s: How long the placement record may take to say who owns the VM.
        round_codec: Packs pages while the guest runs; None for LZ4 where the line keeps up with
            it, and zstd where it does not.
        stop_codec: Packs pages while it stands still; None as above.
        delta_cache_bytes: What may be kept to send pages as differences; 0 switches that off.
        chunk_bytes: Pages of a frame while the guest runs: what a core's own cache holds is packed
            and sealed sooner than what it does not.
        stop_chunk_bytes: Pages of a frame while it stands still.
        frames_in_flight: Frames packed and not yet taken by the transport.
    """

    downtime_s: float = 0.03
    bandwidth_bytes_per_s: float | None = None
    timeout_s: float = 300.0
    max_rounds: int = 1000
    auto_converge: bool = True
    post_copy: bool = False
    reply_timeout_s: float = 10.0
    stop_timeout_s: float = 5.0
    settle_timeout_s: float = 60.0
    round_codec: Codec | None = None
    stop_codec: Codec | None = None
    delta_cache_bytes: int = 64 * MIB
    chunk_bytes: int = MIB
    stop_chunk_bytes: int = MIB
    frames_in_flight: int = 4

    def __post_init__(self) -> None:
        for name in (
            "downtime_s",
            "timeout_s",
            "reply_timeout_s",
            "settle_timeout_s",
            "stop_timeout_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}: give more than 0 seconds")
        if self.bandwidth_bytes_per_s is not None and not self.bandwidth_bytes_per_s > 0:
            raise ConfigError(
                f"bandwidth {self.bandwidth_bytes_per_s}: give more than 0 bytes a second"
            )
        if self.max_rounds < 1 or self.frames_in_flight < 1 or self.delta_cache_bytes < 0:
            raise ConfigError("max_rounds and frames_in_flight begin at 1, delta_cache_bytes at 0")
        for name in ("chunk_bytes", "stop_chunk_bytes"):
            if not PAGE_BYTES <= getattr(self, name) <= 8 * MIB:
                raise ConfigError(f"{name} {getattr(self, name)}: give 4 KiB to 8 MiB")
