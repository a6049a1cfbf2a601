"""Where distilled sets come from: a file, a run folder, this package's own sets, or the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.shorthand import did_you_mean
from pdd_lightning.stored import one_line

FILE = "distilled.safetensors"
_LINKED = Path(__file__).parents[1] / "zoo"
ZOO = _LINKED if _LINKED.is_dir() else Path(__file__).parents[2] / "zoo"
"""Folder of the package's own distilled sets."""


def local_file(source: str | Path) -> Path:
    """Return the file of a distilled set, fetched if it is not there yet.

    Args:
        source: A file, or a folder that holds `distilled.safetensors`; `zoo:name` for one of the package's own sets;
            `hub:owner/name` for a data set repository of the Hugging Face Hub, of which a copy in the cache is taken
            where the Hub cannot be reached.

    Raises:
        ConfigError: There is no such set in the zoo, or `huggingface_hub` is not installed.
        DataError: The Hub does not have it.
    """
    kind, colon, name = str(source).partition(":")
    if colon and kind == "zoo":
        if name not in (names := zoo()):
            advice = did_you_mean(name, names) or f"choose from {', '.join(names)}"
            raise ConfigError(f"there is no distilled set zoo:{name}: {advice}")
        return ZOO / name / FILE
    if colon and kind == "hub":
        return _fetched(name)
    path = Path(source)
    return path / FILE if (path / FILE).is_file() else path


def zoo() -> list[str]:
    """Return the names of the package's own distilled sets."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{FILE}"))


def upload(folder: Path, repository: str) -> str:
    """Upload a folder as a data set repository of the Hugging Face Hub, which is made if it is missing.

    Args:
        folder: What to upload.
        repository: `owner/name`.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: The name is not one of a repository, or `huggingface_hub` is not installed.
        DataError: The Hub refuses it.
    """
    hub = _hub(repository)
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(folder))
    except Exception as error:  # of many unrelated types
        raise DataError(
            f"the Hub does not take {repository}: {one_line(error)}; log in with `hf auth login`"
        ) from error
    return str(address)


def _fetched(repository: str) -> Path:
    hub = _hub(repository)
    try:
        return Path(hub.hf_hub_download(repository, FILE, repo_type="dataset"))
    except Exception as error:  # of many unrelated types
        raise DataError(f"cannot get {FILE} of hub:{repository}: {one_line(error)}") from error


def _hub(repository: str) -> Any:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"a repository of the Hub is called hub:owner/name, got hub:{repository}")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("the Hub needs huggingface_hub: pip install 'pdd-lightning[hub]'") from error
    return huggingface_hub
