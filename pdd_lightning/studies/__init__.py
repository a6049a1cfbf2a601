"""Studies: comparisons of several runs with their evaluation, a table and a plot.

Nothing is imported here, since workers of a cluster need `pdd_lightning.studies.engine` only.
"""
