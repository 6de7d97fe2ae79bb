"""How late a submission is, and which share of its points it keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

DAY = timedelta(days=1)


class Kept(NamedTuple):
    """The percentage of its points that a submission keeps, the days begun since the deadline, and how to say it."""

    percent: float
    days: int
    says: str


@dataclass(frozen=True)
class LateRule:
    """What a late submission keeps of its points.  Without a rule: all.

    grace:            lateness up to this counts as none
    percent_per_day:  lost for each day that has begun;   floor: the percentage that is never lost
    steps:            or instead (days, percentage kept), ascending: up to so many days late; later than the last: 0
    """

    grace: timedelta = timedelta()
    percent_per_day: float = 0.0
    floor: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()

    def kept(self, late: timedelta) -> Kept:
        """What a submission keeps which came so long after its deadline."""
        if late <= self.grace:
            return Kept(100.0, 0, "")
        days = math.ceil(late / DAY)
        if self.steps:
            percent = next((percent for most, percent in self.steps if late <= most * DAY), 0.0)
        else:
            percent = max(self.floor, 100.0 - self.percent_per_day * days)
        return Kept(percent, days, f"{days} {'day' if days == 1 else 'days'} late: {percent:g} %")


def lateness(submitted: datetime | None, deadline: datetime | None, extra_days: float = 0.0) -> timedelta:
    """How long after the deadline; nothing where either is unknown."""
    if submitted is None or deadline is None:
        return timedelta()
    return max(timedelta(), submitted - deadline - extra_days * DAY)
