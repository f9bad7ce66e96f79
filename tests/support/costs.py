"""Costs by which one gradient method is always chosen."""

import dataclasses

from fishexp.sparse.costs import Costs, PartCosts


def cheap(method: str) -> Costs:
    """Make costs by which a method takes next to nothing, and the others much."""
    free = {"dense": ("dense",), "submatrix": ("narrow", "read"), "sddmm": ("reorder", "sampled")}[method]
    names = [field.name for field in dataclasses.fields(PartCosts)]
    own = PartCosts(**{name: 1e-6 if name in free else 10.0 for name in names})
    return Costs({kind: dict.fromkeys(("float32", "float64", "bfloat16"), own) for kind in ("linear", "conv")}, 0.0)
