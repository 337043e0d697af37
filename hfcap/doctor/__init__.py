"""`hfcap doctor`: what a recipe would really train, on what, and at what cost, before any training."""

from hfcap.doctor.run_checks import examine

__all__ = ["examine"]
