"""Code that the experiments share.

An experiment and how it is carried out:
    experiment.py      an experiment, and the environment variables that say what to do with it
    study.py           cells that are run in the same way: their settings, learning rates and seeds
    settings.py        settings as dictionaries, rendered for the command line, composed, compared
    plan.py            the command lines of a study, in order
    sweep.py           carrying out those whose runs are not done
    costs.py           the runs and hours that this would take, what fits into some hours, what is whole
    durations.py       how long runs take, by records and by steps timed on this machine

The records of its runs, and the report:
    records.py         the runs on record, found by their settings
    results.py         the runs of each cell, and the learning rate chosen for it
    report.py          the README.md: its parts, and entries of its tables
    findings.py        sentences made from the numbers
    differences.py     the table of differences between cells, with intervals
    learning_rates.py  the part on learning rates: which were tried, and which taken
    plot.py            pictures of scores, over bytes and over anything else
    distributed.py     tables and sentences for ``regime=distributed``
"""
