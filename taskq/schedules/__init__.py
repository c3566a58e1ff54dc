"""Schedules: when something is due. Pure values; the scheduler acts on them."""

from taskq.schedules.base import Schedule
from taskq.schedules.cron import Crontab, crontab
from taskq.schedules.interval import Every, Once, every, once

__all__ = ["Crontab", "Every", "Once", "Schedule", "crontab", "every", "once"]
