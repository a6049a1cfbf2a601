from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import pdd_lightning.data
from pdd_lightning.data import RealDataModule

FOLDER = Path(__file__).parents[2] / "configs" / "data"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
KINDS = {"Digits", "CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN", "TinyImageNet", "ImageFolder", "ClassTask"}


def instantiate(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RealDataModule, "real")
    parsed = parser.parse_args([f"--real={path}"])
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
    return make(parsed).real


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_makes_the_dataset_it_names(path):
    config = yaml.safe_load(path.read_text())
    data = instantiate(path)
    assert config["class_path"] == f"pdd_lightning.data.{type(data).__name__}"
    plain = {name: value for name, value in config["init_args"].items() if name != "real"}
    assert all(getattr(data, name) == value for name, value in plain.items())
    assert data.normalization == ("zca" if path.stem.endswith("_zca") else "standard")
    assert path.read_text().startswith("# ")


def test_every_dataset_has_a_config():
    assert {type(instantiate(path)).__name__ for path in CONFIGS} == KINDS


@pytest.mark.parametrize("package", [pdd_lightning, pdd_lightning.data], ids=lambda package: package.__name__)
def test_every_exported_name_exists(package):
    assert {getattr(package, name).__name__ for name in package.__all__} == set(dir(package))
    assert "DistilledDataset" in dir(package)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="CIFAR1000"):
        _ = pdd_lightning.data.CIFAR1000
