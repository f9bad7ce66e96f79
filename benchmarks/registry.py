"""The benchmarks by name, in the order in which they run and appear on the page."""

from typing import Any

from benchmarks import delta, fisher, merge, serve, step
from benchmarks.protocol import Benchmark

BENCHMARKS: dict[str, Benchmark[Any]] = {"step": step, "fisher": fisher, "delta": delta, "serve": serve, "merge": merge}
