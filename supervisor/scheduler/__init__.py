"""PURE: what happened in, what to do out; no I/O, no clock, no randomness."""

from .scheduler import Scheduler

__all__ = ["Scheduler"]
