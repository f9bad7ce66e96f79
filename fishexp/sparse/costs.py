"""What the parts of the gradient methods cost: of this processor if it was measured, else of its instruction set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

Kind: TypeAlias = Literal["linear", "conv"]  # of a layer

# exponent, no unit: n threads divide the time of a dense product by n, of what waits for memory by n ** (1 - this)
MEMORY_BOUND = 0.4


@dataclass(frozen=True)
class PartCosts:
    """Hold what the parts of the gradient methods cost a kind of layer in a type, with some number of threads.

    All are nanoseconds, of which a term of the sum takes so many for each

    Attributes:
        dense: multiply-add of the dense product.
        narrow: multiply-add of a product of which one factor has few columns.
        read: number of the other factor of such a product.
        reorder: number that the sampled product takes in another order than the layer has it.
        reorder_last: such number if channels are last.
        reorder_strided: such number if every other row and column is taken.
        sampled: multiply-add of the sampled product.
    """

    dense: float
    narrow: float
    read: float
    reorder: float
    reorder_last: float
    reorder_strided: float
    sampled: float


@dataclass(frozen=True)
class Costs:
    """Hold what gradients cost: for types that have been measured by kind of layer, and nanoseconds for a call."""

    parts: Mapping[str, Mapping[str, PartCosts]]  # kind of layer -> type, such as bfloat16 -> costs
    call: float

    def scaled(self, threads: int) -> "Costs":
        """Return the costs with several threads, of those with one."""
        slower = threads**MEMORY_BOUND
        parts = {
            kind: {
                dtype: PartCosts(
                    **{
                        name: ns / threads * (1 if name in ("dense", "narrow") else slower)
                        for name, ns in vars(own).items()
                    }
                )
                for dtype, own in types.items()
            }
            for kind, types in self.parts.items()
        }
        return Costs(parts, self.call)

    def to_json(self) -> dict[str, Any]:
        """Return the costs as values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Costs":
        """Build the costs of :meth:`to_json`.

        Raises:
            LookupError, TypeError, ValueError: If the values are no costs.
        """
        parts = {
            str(kind): {
                str(dtype): PartCosts(**{name: float(ns) for name, ns in own.items()}) for dtype, own in t.items()
            }
            for kind, t in values["parts"].items()
        }
        return cls(parts, float(values["call"]))


# nanoseconds with one thread, in the order of PartCosts, measured on one core each of an AMD EPYC with AVX-512 and one
# without, with torch 2.15.0; those of AMX are not measured: its dense products were taken to be five times as fast
_AVX512: dict[Kind, dict[str, tuple[float, ...]]] = {
    "linear": {
        "float64": (0.040, 0.042, 0.25, 0.9, 0.9, 0.9, 0.09),
        "float32": (0.0188, 0.020, 0.25, 0.5, 0.5, 0.5, 0.09),
        "bfloat16": (0.0041, 0.0083, 0.25, 0.62, 0.62, 0.62, 0.09),
        "float16": (0.0041, 0.0083, 0.25, 0.62, 0.62, 0.62, 0.09),
    },
    "conv": {
        "float64": (0.040, 0.042, 0.25, 0.9, 2.7, 4.5, 0.09),
        "float32": (0.0090, 0.0095, 0.25, 0.5, 1.5, 2.5, 0.09),
        "bfloat16": (0.0050, 0.0080, 0.25, 0.62, 1.9, 3.1, 0.09),
        "float16": (0.0050, 0.0080, 0.25, 0.62, 1.9, 3.1, 0.09),
    },
}
_AVX2: dict[Kind, dict[str, tuple[float, ...]]] = {
    "linear": {
        "float64": (0.060, 0.062, 0.22, 3.1, 3.1, 3.1, 0.36),
        "float32": (0.023, 0.028, 0.05, 1.1, 1.1, 1.1, 0.10),
        "bfloat16": (0.10, 0.107, 0.05, 1.3, 1.3, 1.3, 0.11),
        "float16": (0.35, 0.39, 0.05, 1.3, 1.3, 1.3, 0.11),
    },
    "conv": {
        "float64": (0.076, 0.060, 0.05, 1.8, 4.7, 4.5, 0.33),
        "float32": (0.030, 0.024, 0.21, 1.5, 3.0, 3.8, 0.16),
        "bfloat16": (0.25, 0.26, 0.05, 1.9, 3.1, 4.7, 0.15),
        "float16": (0.22, 0.23, 0.05, 1.6, 3.2, 5.2, 0.17),
    },
}
_CALL, _AMX_SPEEDUP = 30_000.0, 5.0


def by_instruction_set(capability: str) -> Costs:
    """Return typical costs with one thread of processors that have an instruction set.

    Args:
        capability: As :func:`torch.backends.cpu.get_cpu_capability` names it; all but AVX-512 get the costs of AVX2.
    """
    table = _AVX512 if capability == "AVX512" else _AVX2
    parts = {kind: {dtype: PartCosts(*ns) for dtype, ns in types.items()} for kind, types in table.items()}
    if torch.cpu._is_amx_tile_supported():
        for types in parts.values():
            own = types["bfloat16"]
            types["bfloat16"] = replace(own, dense=own.dense / _AMX_SPEEDUP, narrow=own.narrow / _AMX_SPEEDUP)
    return Costs(parts, _CALL)
