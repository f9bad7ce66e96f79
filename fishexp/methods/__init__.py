"""Methods, which choose the weights that may move: a file for each, with ``scores(problem, *, ...) -> Scores``.

A score is the importance of a weight; the budget and the classifier head are the runner's business. With
``unit: entry`` in the yaml of a method and ``RUN_SETTINGS = UnitSettings`` in its module, ``method.unit=row`` selects
whole rows by its scores (:mod:`fishexp.masks.units`). A method that names its weights outright has
``mask(problem) -> Mask`` instead, and ``ignores_keep: true`` in its yaml.
"""
