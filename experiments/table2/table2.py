"""Table 2 of the paper, workers that merge rarely, on GLUE: ``PROFILE=cpu python experiments/table2/table2.py``.

Learning rates are chosen on held-out training sentences with seed 0; then every cell runs at its rate, seed by seed.
Finished runs are skipped and cut ones continued, so the same command goes on where it stopped, also in two terminals at
once. ``DRY=1`` says what there is to do; ``PYTHON`` is the interpreter of the runs.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this repository's fishexp, whatever is installed

from experiments import command, costs, merges
from experiments.table2 import report
from experiments.table2.cells import PROFILES

HOME = Path(__file__).parent
OUTPUTS = "outputs/table2"


def main(environment: Mapping[str, str], records: Path = HOME / "records.jsonl", outputs: str = OUTPUTS) -> int:
    """See :func:`experiments.command.main`."""
    dry = partial(costs.table, seconds=merges.seconds)
    return command.main(environment, PROFILES, records, outputs, dry=dry, write=report.write)


if __name__ == "__main__":
    sys.exit(main(os.environ))
