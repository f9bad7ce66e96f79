"""Time to compute the diagonal Fisher information of all weights."""

from benchmarks.fisher.case import cases, quick_cases
from benchmarks.fisher.measurement import measure
from benchmarks.fisher.report import PICTURE, sections, title

__all__ = ["PICTURE", "cases", "measure", "quick_cases", "sections", "title"]
