"""Speeds, measured: `make bench`. No test asserts a time."""
