"""Size of a delta, and time to save, load, apply and undo it."""

from benchmarks.delta.case import cases, quick_cases
from benchmarks.delta.measurement import measure
from benchmarks.delta.report import PICTURE, sections, title

__all__ = ["PICTURE", "cases", "measure", "quick_cases", "sections", "title"]
