"""Experiments that reproduce tables of the paper, and smaller ones.

A folder that is a package is an experiment: ``python -m experiments table3`` carries it out. In digits/, sst2/ and
cifar10/ a shell script does. lib/ has what the experiments share, LOG.md what was learned on the way.

To add an experiment, add its folder: ``NAME/__init__.py`` defines ``EXPERIMENT``, an
:class:`experiments.lib.experiment.Experiment`. Its records.jsonl, README.md and pictures are written into the folder.
"""
