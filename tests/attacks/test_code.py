"""What a file or an option names is a class of the right kind before anything is called, and from a trusted place."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pdd_lightning.cli import main
from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.networks import ConvNet, ResNet18, Torchvision, ViT
from pdd_lightning.networks.spec import check_size, factory_from_spec
from tests.attacks.conftest import Prepared, forged, refusal

NO_CLASS = "is no class of networks, data, callbacks"


def touching(trace: Path) -> dict[str, dict[str, Any]]:
    """Specifications that run code which leaves a trace, if anything is called."""
    return {
        "os.system": {"command": f"touch {trace}"},
        "os.mkdir": {"path": str(trace)},
        "os.makedirs": {"name": str(trace)},
        "posix.system": {"command": f"touch {trace}"},
        "subprocess.run": {"args": ["touch", str(trace)]},
        "subprocess.check_call": {"args": ["touch", str(trace)]},
        "subprocess.Popen": {"args": ["touch", str(trace)]},
        "pathlib.Path.touch": {"self": str(trace)},
        "shutil.copy": {"src": __file__, "dst": str(trace)},
        "builtins.exec": {"source": f"open({str(trace)!r}, 'w')"},
        "builtins.eval": {"source": f"open({str(trace)!r}, 'w')"},
        "builtins.open": {"file": str(trace), "mode": "w"},
        "io.open": {"file": str(trace), "mode": "w"},
        "io.FileIO": {"file": str(trace), "mode": "w"},
        "functools.partial": {"func": "os.system"},
        "torch.hub.load": {"repo_or_dir": str(trace.parent), "model": "x", "source": "local"},
        "runpy.run_path": {"path_name": str(trace)},
        "importlib.import_module": {"name": "antigravity"},
        "tempfile.mkdtemp": {"dir": str(trace.parent), "prefix": "it_ran"},
        "pdd_lightning.files.atomic_write_bytes": {"path": str(trace), "data": "x"},
        "pdd_lightning.cli.main": {"args": ["report", str(trace.parent), "--output", str(trace)]},
    }


NAMES = list(touching(Path("x")))
PLACES = {
    "network": ("model", "init_args", "network"),
    "callback": ("trainer", "callbacks"),
    "logger": ("trainer", "logger"),
    "profiler": ("trainer", "profiler"),
    "strategy": ("trainer", "strategy"),
    "plugin": ("trainer", "plugins"),
    "data": ("data", "real"),
    "method": ("model",),
}


def nested(names: tuple[str, ...], value: Any) -> Any:
    return nested(names[:-1], {names[-1]: value}) if names else value


def nothing_ran(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith("it_ran")]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_is_no_network_in_a_configuration(name: str, prepared: Prepared, tmp_path: Path) -> None:
    spec = {"class_path": name, "init_args": touching(tmp_path / "it_ran")[name]}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(nested(PLACES["network"], spec)))
    words = ["--config", prepared.recipe, "--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ["fit", *words]])
    assert stop.value.code == 2 or NO_CLASS in str(stop.value.code)
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "io.FileIO", "builtins.exec"])
@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_other_parts_of_a_run_that_are_none(name: str, place: str, prepared: Prepared, tmp_path: Path) -> None:
    spec: Any = {"class_path": name, "init_args": touching(tmp_path / "it_ran")[name]}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(nested(PLACES[place], [spec] if place == "callback" else spec)))
    words = ["--config", prepared.recipe, "--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ["fit", *words]])
    assert stop.value.code not in (0, None)
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_exception", "teardown"])
@pytest.mark.parametrize("function", ["os.system", "shutil.rmtree", "tests.attacks.test_code.nothing_ran"])
def test_functions_as_arguments_of_a_callback(hook: str, function: str, prepared: Prepared, tmp_path: Path) -> None:
    spec = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {hook: function}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"trainer": {"callbacks": [spec]}}))
    words = ["--config", prepared.recipe, "--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    assert NO_CLASS in refusal("fit", *words)


@pytest.mark.parametrize("verb", ["evaluate", "describe", "continual", "convert"])
def test_a_network_that_is_no_network_as_an_option(verb: str, prepared: Prepared, tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    network = json.dumps({"class_path": "os.system", "init_args": {"command": f"touch {trace}"}})
    files = {"continual": 2, "convert": 1}.get(verb, 1) * [prepared.run / "distilled.safetensors"]
    target = [tmp_path / "target.parquet"] if verb == "convert" else []
    assert NO_CLASS in refusal(verb, *files, *target, *prepared.words, "--network", network)
    assert not trace.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trust", [False, True])
def test_a_stored_network_that_is_none(name: str, trust: bool, tmp_path: Path) -> None:
    spec = {"class_path": name, "init_args": touching(tmp_path / "it_ran")[name]}
    with pytest.raises(ConfigError, match=r"cannot use the stored network .* name one with --network"):
        factory_from_spec(spec, trust)
    assert nothing_ran(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "tests.tiny.DropoutNet",
        "torch.nn.Identity",
        "pdd_lightningevil.Net",
        "pdd_lightning.cli.LightningModule",
        "pdd_lightning.metrics.forgetting.Metric",
        "pdd_lightning.networks.spec.importlib",
        "pdd_lightning.networks.ConvNet.forward",
        "pdd_lightning.networks",
        "pdd_lightning.__main__.main",
        "torchvision.models.resnet.nn.Linear",
        "torchvision.models.resnet18",
        "torchvision.datasets.MNIST",
        "torchvision.os.system",
        "..pdd_lightning.networks.ConvNet",
        "pdd_lightning..ConvNet",
        "pdd_lightning.",
        ".",
        "",
        "pdd_lightning.networks.Conv\u200bNet",
        "pdd_lightning.networks.ConvNet\n",
    ],
)
def test_names_in_files_lead_to_networks_of_trusted_packages_alone(path: str) -> None:
    with pytest.raises(PDDError, match="stored network"):
        factory_from_spec({"class_path": path, "init_args": {}})


@pytest.mark.parametrize("trust", [False, True])
def test_a_strangers_class_is_imported_where_it_is_trusted(
    trust: bool, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from pathlib import Path\nfrom tests.tiny import DropoutNet\nPath(__file__).with_suffix('.ran').touch()\n"
    (tmp_path / "stranger.py").write_text(f"{code}class Net(DropoutNet): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    def alter(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        header["network"] = {"class_path": "stranger.Net", "init_args": {}}

    path = forged(prepared.run / "distilled.safetensors", tmp_path / "set.safetensors", alter)
    words = ["evaluate", path, *prepared.words, "--epochs", 1, "--num_networks", 1, "--baselines", "[]"]
    if trust:
        main([str(word) for word in [*words, "--trust"]])
        assert "network: Net" in capsys.readouterr().out
    else:
        message = refusal(*words)
        assert "--trust" in message and "stranger.Net" in message
    assert (tmp_path / "stranger.ran").exists() == trust
    sys.modules.pop("stranger", None)


@pytest.mark.parametrize(
    "factory",
    [
        *(partial(ConvNet, width=width) for width in (10**12, 10**9, 10**5, 0, -1, 1.5, "wide", None, 2**80)),
        *(partial(ConvNet, depth=depth) for depth in (10**9, 0, -1)),
        partial(ConvNet, norm="none such"),
        *(partial(ResNet18, width=width) for width in (10**6, 10**12, 0, -3)),
        *(partial(ViT, depth=10**9, width=8, heads=1), partial(ViT, width=10**12), partial(ViT, patch_size=0)),
        *(partial(ViT, heads=0), partial(ViT, mlp_width=10**13)),
        partial(Torchvision, name="resnet18", options={"width_per_group": 10**8}),
        partial(Torchvision, name="resnet18", options={"weights": "DEFAULT"}),
        partial(Torchvision, name="no_such"),
        partial(Torchvision, name="densenet121", options={"growth_rate": 10**9}),
    ],
    ids=lambda factory: f"{factory.func.__name__} {factory.keywords}",
)
def test_networks_that_are_too_large_or_impossible_take_no_memory(factory: partial[nn.Module]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError):
        check_size(factory, (3, 8, 8), 10)
    assert torch.equal(torch.get_rng_state(), before)
    nn.Linear(2, 2)  # nothing is left behind that would count it


def test_sound_networks_pass_and_leave_no_trace() -> None:
    class OfItsOwn(nn.Linear):
        def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
            super().__init__(in_channels, num_classes)
            self.norm = float(self.weight.norm())  # has no value on the device `meta`

    before = torch.get_rng_state()
    for factory in (ConvNet, ResNet18, partial(ViT, patch_size=4), OfItsOwn):
        check_size(factory, (3, 32, 32), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("verb", ["evaluate", "describe"])
def test_a_strangers_set_asks_for_a_network_beyond_measure(verb: str, prepared: Prepared, tmp_path: Path) -> None:
    def alter(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        header["network"] = {"class_path": "pdd_lightning.networks.ConvNet", "init_args": {"width": 10**12}}

    path = forged(prepared.run / "distilled.safetensors", tmp_path / "set.safetensors", alter)
    assert "more than 1000000000 parameters" in refusal(verb, path, *prepared.words)
    assert [file.name for file in tmp_path.iterdir()] == ["set.safetensors"]
