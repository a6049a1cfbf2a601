"""`pdd share`: the distilled set of a run as a repository that others can use."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

from pdd_lightning.commands.command import Command
from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats import FORMATS
from pdd_lightning.data.hub import FILE, upload
from pdd_lightning.errors import ConfigError
from pdd_lightning.files import atomic_write_bytes, replace_folder
from pdd_lightning.results.schema import RunSummary
from pdd_lightning.results.tables import evaluation_table, stages_table
from pdd_lightning.stored import read_stored

_USE = """```python
from pdd_lightning import DistilledDataset

distilled = DistilledDataset.load("{source}")
for stage in range(1, distilled.num_stages + 1):
    train(network, distilled.union(stage), lr=distilled.learning_rate(stage))  # your own loop
```"""


class Share(Command):
    """Writes what the Hub shows and other programs read: the set, Parquet, pictures, and a card."""

    name = "share"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the run and the target."""
        parser.add_argument("run", type=str, help="A finished run folder.")
        parser.add_argument(
            "--to", type=str, required=True, help="A folder, or hub:owner/name of the Hugging Face Hub."
        )
        parser.add_argument(
            "--license", type=str, default="other", help="License of the real images, as the Hub calls it (mit, ..)."
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace what the folder holds.")

    def run(self, options: Namespace) -> None:
        """Write the folder, or upload it."""
        run, target = Path(options["run"]), options["to"]
        if target.startswith("hub:"):
            with tempfile.TemporaryDirectory() as folder:
                write_repository(run, Path(folder), options["license"], target)
                print(f"Uploaded {upload(Path(folder), target.removeprefix('hub:'))}")
            return
        if Path(target).exists() and not options["overwrite"]:
            raise ConfigError(f"{target} exists already: choose another folder, or replace it with --overwrite true")
        replace_folder(Path(target), lambda folder: write_repository(run, folder, options["license"], target))
        print(f'Wrote {target}: DistilledDataset.load("{target}") reads it')


def write_repository(run: Path, folder: Path, license: str, source: str) -> None:
    """Write the repository of a run.

    Args:
        run: The run folder.
        folder: Where to write.
        license: License of the real images.
        source: What `DistilledDataset.load` will call the repository.

    Raises:
        DataError: The run has no distilled set, or no summary.
        DamagedFileError: One of them is damaged.
    """
    dataset = DistilledDataset(run / FILE, stored=True)
    summary = read_stored(RunSummary, run / "summary.json", "continue the run to write it again")
    shutil.copyfile(run / FILE, folder / FILE)
    (folder / "data").mkdir()
    FORMATS["parquet"].save(folder / "data" / "train.parquet", dataset, overwrite=False)
    for path in (run / "images" / "union.png", run / "config.yaml"):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    atomic_write_bytes(folder / "README.md", card(dataset, summary, license, source).encode())


def card(dataset: DistilledDataset, summary: RunSummary, license: str, source: str) -> str:
    """Return the description of a set, in Markdown with the Hub's YAML header.

    Args:
        dataset: The set as it is stored.
        summary: What the run says of itself.
        license: License of the real images.
        source: What `DistilledDataset.load` will call the repository.
    """
    name, method = summary.dataset.get("name", "real images"), str(summary.settings.get("method", "an unknown method"))
    header = {
        "license": license,
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "pdd-lightning"],
        "configs": [{"config_name": "default", "data_files": "data/train.parquet"}],
    }
    rows = [row.model_dump() for row in summary.evaluation]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name}, distilled",
        f"{len(dataset)} images of {len(dataset.class_names)} classes in {dataset.num_stages} stages, distilled from"
        f" {name} by {method} with pdd_lightning"
        f" {summary.package_version or ''}, seed {summary.seed}.",
        "![distilled images](union.png)",
        "## Use",
        _USE.format(source=source),
        "The same images, labels and stages are in `data/train.parquet`, as 8-bit pixels, for other programs.",
        "## Accuracy",
        "Mean and standard deviation over freshly initialized networks, in %.",
        evaluation_table(rows).markdown() if rows else "Not evaluated.",
        "## Stages",
        stages_table(summary.stages).markdown(),
        "## Made by",
        "`pdd fit --config config.yaml`, with the path of the real images in `config.yaml`.",
        f"SHA-256 of images, labels and metadata: `{dataset.metadata.get('sha256', '')}`.",
    ]
    return "\n\n".join(parts) + "\n"
