"""Drivers for tests: one with seeded faults, and a driver's contract within reach of Python."""
