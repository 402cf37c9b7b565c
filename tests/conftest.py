"""For all tests."""

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""Under nohup it is ignored, and every child would inherit that: those who hang up a terminal here would wait for ever."""
