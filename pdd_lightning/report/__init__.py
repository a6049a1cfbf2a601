"""One page that shows and compares runs and studies."""

from pdd_lightning.report.folders import Broken, Folders, read_folders
from pdd_lightning.report.page import render_page
from pdd_lightning.report.runs import Run
from pdd_lightning.report.studies import Study

__all__ = ["Broken", "Folders", "Run", "Study", "read_folders", "render_page"]
