"""What may be asked of fault tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rayvisor.migration.config import MIB, Codec, MigrationConfig
from rayvisor.vmm.errors import ConfigError

SHORTEST_EPOCH_S: Final = 0.002
LONGEST_OF_SILENCE: Final = 1 / 3
"""The longest epoch, of the silence after which a primary is taken for dead."""
LONGEST_EPOCHS: Final = 8
LONGEST_LOOK_S: Final = 0.05
SEED_DOWNTIME_S: Final = 0.5
SEED_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class FtConfig:
    """Limits and choices of one VM's fault tolerance.

    Attributes:
        epoch_s: How long the guest runs between two checkpoints, if that costs it little: seconds.
        silence_s: A peer that has not been heard for so long is taken for dead.
        pause_ratio: Epochs get longer when pauses would take more than this share of the time.
        aside_bytes: Dirty pages copied aside while the guest stands still; more are sent while it
            does.
        delta_cache_bytes: What may be kept to send pages as differences; 0 switches that off.
        chunk_bytes: Pages of a frame.
        frames_in_flight: Frames packed and not yet taken by the transport.
        held_bytes: Output that may wait for its epoch; a guest that has written more stands still.
    """

    epoch_s: float = 0.025
    silence_s: float = 0.5
    pause_ratio: float = 0.03
    aside_bytes: int = 8 * MIB
    delta_cache_bytes: int = 64 * MIB
    chunk_bytes: int = MIB // 4
    frames_in_flight: int = 8
    held_bytes: int = MIB

    def __post_init__(self) -> None:
        if not SHORTEST_EPOCH_S <= self.epoch_s <= self.longest_epoch_s:
            raise ConfigError(
                f"an epoch of {self.epoch_s:g} s: give {SHORTEST_EPOCH_S * 1000:g} ms to"
                f" {self.silence_s * LONGEST_OF_SILENCE * 1000:.0f} ms, a third of the silence"
                f" after which a host is taken for dead"
            )

    @property
    def longest_epoch_s(self) -> float:
        """No epoch is longer, but for a link that is too slow."""
        return min(LONGEST_EPOCHS * self.epoch_s, LONGEST_OF_SILENCE * self.silence_s)

    @property
    def seeding(self) -> MigrationConfig:
        """How the secondary gets the guest's pages first.

        The first epoch has what is left then, so nobody is slowed down for the sake of little
        being left; and packing must not take the processor away from the guest.
        """
        return MigrationConfig(
            downtime_s=SEED_DOWNTIME_S,
            max_rounds=SEED_ROUNDS,
            auto_converge=False,
            round_codec=Codec.LZ4,
            frames_in_flight=self.frames_in_flight,
        )

    @property
    def look_s(self) -> float:
        """How often who hears nothing looks at how long that has been."""
        return min(LONGEST_LOOK_S, self.beat_s)

    @property
    def beat_s(self) -> float:
        """How often a peer says that it lives when it has nothing else to say."""
        return self.silence_s / 10
