"""Time and traffic of a merge of workers on this machine."""

from benchmarks.merge.case import cases, quick_cases
from benchmarks.merge.measurement import measure
from benchmarks.merge.report import PICTURE, sections, title

__all__ = ["PICTURE", "cases", "measure", "quick_cases", "sections", "title"]
