"""Distilled sets in the forms that others use: opening any of them as a `DistilledDataset`, and writing them."""

from pdd_lightning.data.formats.content import ImportOptions
from pdd_lightning.data.formats.opening import form_of, open_distilled
from pdd_lightning.data.formats.trajectories import read_trajectories
from pdd_lightning.data.formats.writing import FORMS, Form, form_for, save_as

__all__ = [
    "FORMS",
    "Form",
    "ImportOptions",
    "form_for",
    "form_of",
    "open_distilled",
    "read_trajectories",
    "save_as",
]
