"""How long an epoch should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rayvisor.migration.ft_config import FtConfig

SMOOTHING: Final = 0.25
"""Weight of the newest pause: one that was long by chance changes little."""


class Pace:
    """Adapts the epoch to what a checkpoint costs the guest.

    A checkpoint costs a pause, and most of it is copying what was dirty. So epochs are as short as
    was asked for while pauses take less than `FtConfig.pause_ratio` of the time, and longer, up to
    a bound, when the guest dirties much. Where nobody waits for output or input they are as long
    as they may be.
    """

    def __init__(self, config: FtConfig) -> None:
        self._config = config
        self._pause_s = 0.0

    @property
    def epoch_s(self) -> float:
        """How long the guest runs between two checkpoints when somebody waits for what it says."""
        wanted_s = self._pause_s / self._config.pause_ratio
        return min(max(self._config.epoch_s, wanted_s), self._config.longest_epoch_s)

    @property
    def quiet_epoch_s(self) -> float:
        """The same when nobody waits."""
        return self._config.longest_epoch_s

    def paused(self, seconds: float) -> None:
        """A checkpoint has cost the guest so much."""
        self._pause_s += SMOOTHING * (seconds - self._pause_s)

    def is_lagging(self, epoch_s: float) -> bool:
        """Whether an epoch was far longer than any should be: the link is too slow."""
        return epoch_s > 2 * self._config.longest_epoch_s
