"""Benchmarks, conformance runs and launchers; each is run by itself, none is part of the package."""
