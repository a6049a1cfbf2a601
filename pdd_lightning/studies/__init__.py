"""Comparisons that one command makes: several runs, their evaluation, a table and a plot.

Nothing is imported here: workers of a cluster need `pdd_lightning.studies.engine` alone.
"""
