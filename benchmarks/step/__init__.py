"""Time and memory of a training step: forward, backward, optimizer step."""

from benchmarks.step.case import cases, quick_cases
from benchmarks.step.measurement import measure
from benchmarks.step.report import PICTURE, sections, title

__all__ = ["PICTURE", "cases", "measure", "quick_cases", "sections", "title"]
