"""Time to answer for one of many tasks with one model in memory, and for the model of another task next."""

from benchmarks.serve.case import cases, quick_cases
from benchmarks.serve.measurement import measure
from benchmarks.serve.report import PICTURE, sections, title

__all__ = ["PICTURE", "cases", "measure", "quick_cases", "sections", "title"]
