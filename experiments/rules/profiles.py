"""The profiles of the comparison of rules: how large it may be made."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from experiments.lib.sentences import LARGE, RULES, SMALL, Cell, study
from experiments.lib.study import Study

# rules whose lead is followed over budgets, and those that are allocated in other ways
_OVER_BUDGETS, _ALLOCATED = ("fish", "random", "magnitude", "gradient"), ("fish", "magnitude")
_KEEPS = (0.0002, 0.001, 0.02)
_SEEDS = range(5)
_SST2, _STSB = SMALL["sst2"], SMALL["stsb"]

PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        study(_SST2, [Cell(rule) for rule in RULES], _SEEDS),
        # the best rate is often ahead of it by less than 500 held-out examples can tell
        replace(study(_SST2, [Cell(rule) for rule in RULES], range(3), "sst2-second"), rank=1),
        study(_STSB, [Cell(rule) for rule in RULES], _SEEDS),
        study(_SST2, [Cell(rule, per=per) for rule, per in product(_ALLOCATED, ("matrix", "row"))], _SEEDS, "sst2-per"),
        study(_SST2, [Cell(rule, keep) for keep, rule in product(_KEEPS, _OVER_BUDGETS)], range(2), "sst2-keeps"),
    ],
    "gpu": [study(LARGE[task], [Cell(rule) for rule in RULES], _SEEDS) for task in ("sst2", "stsb", "cola")],
}
