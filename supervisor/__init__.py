"""Decides who holds which GPU and acts on it: the one process that supervises every trainer and engine of a box."""
