"""The run: it acts on what the scheduler decides."""
