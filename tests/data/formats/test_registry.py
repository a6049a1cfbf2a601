"""A format that is added: one class."""

import torch

from pdd_lightning.cli import main
from pdd_lightning.commands import COMMANDS
from pdd_lightning.data import DistilledDataset, open_distilled
from pdd_lightning.data.formats import FORMATS
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat
from pdd_lightning.data.formats.registry import register


def test_a_registered_class_is_read_written_and_offered(tmp_path, even, blobs, monkeypatch, capsys):
    monkeypatch.setitem(FORMATS, "labeled", None)  # so that it is taken out again

    @register
    class Labeled(ForeignFormat):
        name, title, files, suffix = "labeled", "Labeled", "a file of labels and images", ".labeled"
        in_model_space = True
        keeps = ("stages",)

        def sniff(self, path, content):
            return path.suffix == ".labeled"

        def contents(self, path, real):
            labels, stages, images = torch.load(path, weights_only=True)
            return Contents(images, labels, stages=stages)

        def write(self, path, dataset):
            torch.save([dataset.labels, dataset.stages, dataset.images], path)

    dataset = DistilledDataset.of(even, blobs.pixels, blobs.class_names, {}, stored=True)
    ours, theirs = str(tmp_path / "ours.safetensors"), str(tmp_path / "theirs.labeled")
    FORMATS["safetensors"].save(ours, dataset)
    main(["convert", ours, theirs])
    printed = capsys.readouterr().out
    assert "2 stages, labeled format" in printed and "learned rates are not stored: 0.02, 0.013" in printed
    back = open_distilled(theirs, blobs)
    assert torch.equal(back.images, even.images) and torch.equal(back.stages, even.stages)
    assert back.learning_rates == (None, None) and back.metadata["imported_from"] == "Labeled"
    assert "labeled: a file of labels and images" in " ".join(COMMANDS["convert"].parser().format_help().split())


def test_every_format_is_named_in_the_help():
    text = " ".join(COMMANDS["convert"].parser().format_help().split())
    assert list(FORMATS) == ["safetensors", "folder", "mtt", "idc", "dc", "ddranking", "parquet", "trajectories"]
    assert all(f"{name}: {kind.files}" in text for name, kind in FORMATS.items())
    assert "{safetensors,folder,mtt,idc,dc,ddranking,parquet}" in text
