"""A run that stands still, so that a test can break something in its middle."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


class Hold(Callback):
    """Holds a run after four iterations of a stage, as long as a file exists.

    Args:
        folder: Holds the file `hold`; the process and the one that started it are written to `held`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Waits."""
        while batch_idx == 3 and (self.folder / "hold").exists():
            partial = self.folder / f"held.{os.getpid()}"
            partial.write_text(f"{os.getpid()} {os.getppid()}")
            partial.replace(self.folder / "held")
            time.sleep(0.1)
