"""How long a sweep will take, from how long it took so far."""

from __future__ import annotations

import time


class Pace:
    """Counts what ends, of `total`."""

    def __init__(self, total: int) -> None:
        self._total, self._ended, self._begun = total, 0, time.monotonic()

    def after_one(self) -> str:
        """Note that one more ended; return the time left as ``, about 3 min 20 s left``."""
        self._ended += 1
        left = self._total - self._ended
        seconds = left * (time.monotonic() - self._begun) / self._ended
        return f", about {duration(seconds)} left" if left > 0 else ""


def duration(seconds: float) -> str:
    """Return a duration for a reader: its two largest units."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
