"""Short forms of command lines: YAML files of the package by name, and run folders in place of the files in them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pdd_lightning.errors import ConfigError

_LINKED = Path(__file__).parent / "configs"
CONFIGS = _LINKED if _LINKED.is_dir() else Path(__file__).parents[1] / "configs"
"""The package's YAML files: recipes, and what they are made of."""
VERBS = {
    "fit": "Distil real images in stages: a recipe by name or file, and options.",
    "resume": "Continue the run in a folder.",
    "test": "Train fresh networks on the distilled set of a run, and score them on the test images.",
    "evaluate": "Train networks on a distilled set and score them on real images.",
    "describe": "Describe the images of each stage: colour, spectrum, separability, distance to real images.",
    "continual": "Learn classes task by task, with distilled or real images as memory of earlier tasks.",
    "convert": "Bring a distilled set, or expert trajectories of MTT, into another format.",
    "join": "Join distilled sets into one, whose stages are theirs, one after another.",
    "study": "Run the steps of a study that are not done yet, and write its table and plot.",
    "share": "Write the distilled set of a run as a repository for others: a folder, or one of the Hugging Face Hub.",
    "report": "Show and compare runs and studies on one self-contained HTML page.",
    "runs": "List runs: method, data, stages, accuracy, and whether they are running, stopped, or finished.",
    "recipes": "List the recipes that come with the package, which `pdd fit` takes by name.",
}
"""What there is to do, a sentence each."""
KINDS = {
    "config": "recipe",
    "data": "data",
    "data.real": "data",
    "model": "method",
    "network": "network",
    "model.network": "network",
    "model.init_args.network": "network",
}
"""Options that take a YAML file, and in which folder the package's own ones lie."""


NAMES = {"data": "dataset"}
"""What messages call a kind whose folder has another name."""


def shipped(kind: str) -> dict[str, Path]:
    """The package's YAML files of a kind, by name.

    Args:
        kind: recipe, data, method, network, study or trainer.
    """
    return {path.stem: path for path in sorted((CONFIGS / kind).glob("*.yaml"))}


def long_form(arguments: Sequence[str]) -> list[str]:
    """The command line that a short one stands for; a long one stays as it is.

    - Options that take a YAML file, and `study`, take the name of one of the package's: `--network resnet18`.
    - `fit` and `test` take a recipe, or a run folder, as first argument: `pdd fit digits_mtt`, `pdd test runs/a`.
    - `--folder` stands for `--trainer.default_root_dir`, and `resume FOLDER` continues the run in a folder.
    - `evaluate` and `describe` take a run folder for its distilled set, with the real images of the run.

    Raises:
        ConfigError: There is no such recipe, study, or run.
    """
    verb, *rest = [_named(word, before) for before, word in zip(["", *arguments], arguments, strict=False)] or [""]
    first = rest[0] if rest and not rest[0].startswith("-") else None
    if verb == "resume":
        if first is None:
            raise ConfigError("name the folder of the run to continue: pdd resume FOLDER")
        return ["fit", *_of_run(Path(first)), "--ckpt_path=last", *_with_folder(rest[1:])]
    if verb in ("fit", "test"):
        if first is None:
            return [verb, *_with_folder(rest)]
        if verb == "test" and not Path(first).exists() and first not in shipped("recipe"):
            raise ConfigError(f"there is no run in {first}: it does not exist")
        begin = _of_run(Path(first)) if Path(first).is_dir() else [f"--config={shipped_file('recipe', first)}"]
        return [verb, *begin, *_with_folder(rest[1:])]
    if verb == "study" and first is not None:
        return [verb, str(shipped_file("study", first)), *rest[1:]]
    if verb in ("evaluate", "describe") and first is not None and Path(first, "config.yaml").is_file():
        given = any(word.startswith("--data") for word in rest)
        return [verb, str(Path(first, "distilled.safetensors")), *([] if given else _data_of(Path(first))), *rest[1:]]
    return list(arguments[:1]) + rest


def _named(word: str, before: str) -> str:
    """An argument, with the path of a shipped file in place of its name."""
    option, equals, value = word.partition("=")
    if not word.startswith("--"):
        option, equals, value = before, "", word
    path = shipped(KINDS[option[2:]]).get(value) if option[2:] in KINDS and option.startswith("--") else None
    if path is None or Path(value).exists():
        return word
    return f"{option}={path}" if equals else str(path)


def shipped_file(kind: str, name: str) -> Path:
    """Return the path of a YAML file, by its path or the name of a shipped one.

    Raises:
        ConfigError: There is none.
    """
    known = shipped(kind)
    if Path(name).is_file() or name in known:
        return Path(name) if Path(name).is_file() else known[name]
    advice = did_you_mean(name, known) or f"name a YAML file, or one of the package's, such as {next(iter(known))}"
    raise ConfigError(f"there is no {NAMES.get(kind, kind)} {name}: {advice}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask whether the most similar known names were meant; empty where none is similar."""
    by_lower_case = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(by_lower_case[each] for each in near)}?" if near else ""


def _with_folder(arguments: Sequence[str]) -> list[str]:
    """Arguments with Lightning's option for the run folder."""
    return [
        f"--trainer.default_root_dir{word.removeprefix('--folder')}" if word.partition("=")[0] == "--folder" else word
        for word in arguments
    ]


def _of_run(folder: Path) -> list[str]:
    """The options of the run in a folder."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"there is no run in {folder}: it has no config.yaml")
    return [f"--config={folder / 'config.yaml'}", f"--trainer.default_root_dir={folder}"]


def _data_of(folder: Path) -> list[str]:
    """The option that names the real images of the run in a folder, whose file may be a stranger's."""
    from pdd_lightning.stored import MAX_YAML_BYTES, load_yaml, read_bytes  # here, because torch takes its time

    path = folder / "config.yaml"
    try:
        real = load_yaml(read_bytes(path, MAX_YAML_BYTES).decode())["data"]["real"]
        foreign = [name for name in _classes(real) if not name.startswith("pdd_lightning.")]
        option = f"--data={json.dumps(real)}"
    except (ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} does not say the real images: name them with --data") from error
    if foreign:
        raise ConfigError(f"{path} takes real images by {foreign[0]}, which is not part of this package: name --data")
    return [option]


def _classes(content: Any) -> Iterator[str]:
    """All class paths in nested settings."""
    if isinstance(content, dict):
        if "class_path" in content:
            yield str(content["class_path"])
        for value in content.values():
            yield from _classes(value)
