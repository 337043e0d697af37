"""Systems on parts of the images: those that columns tell apart, and those that were found to score worse."""

from hfcap.comparison.slices.by_column import SliceExamples, compare_slices, slice_examples
from hfcap.comparison.slices.found import compare_found_slices

__all__ = ["SliceExamples", "compare_found_slices", "compare_slices", "slice_examples"]
