"""`hfcap doctor`: what a recipe would really train, on what, and at what cost, before any training."""

from hfcap.doctor.examination import examine

__all__ = ["examine"]
