"""Methods, which choose the weights that may move: a file for each, with ``scores(problem, *, ...) -> Scores``.

A score is the importance of a weight; the budget and the classifier head are the runner's business. With
``unit: entry`` and ``per: network`` in the yaml of a method and ``RUN_SETTINGS = SelectionSettings`` in its module,
``method.unit=row`` selects whole rows by its scores (:mod:`fishexp.masks.units`), and ``method.per=row`` the best
entries of each row (:mod:`fishexp.masks.allocation`). A method that names its weights outright has
``mask(problem) -> Mask`` instead, and ``ignores_keep: true`` in its yaml. A method that has brought weights elsewhere
returns its scores as :class:`fishexp.masks.started.Started`, with the values in which kept entries begin to train; it
says ``needs_regime: transfer`` in its yaml, as other regimes do not look at these. So does a method that trains other
parameters than the model's, with ``adapt(problem, keep, *, ...) -> Adapted`` (:mod:`fishexp.training.adapted`).

For ``plan=true`` a method with ``mask`` or ``adapt`` may count what trains by the shapes of a network without weights:
``outline(network, head, keep, *, ...) -> Outline``, which takes options of the other.
"""

from typing import NamedTuple


class Outline(NamedTuple):
    """Count what a method that names its weights outright lets train, and what that changes.

    Attributes:
        trains: Numbers that an optimiser moves.
        changes: Weights of the model that are others in the end; adapters are merged into them.
    """

    trains: int
    changes: int
