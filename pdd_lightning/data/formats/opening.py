"""Opening a distilled set of any form, by looking at the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.formats import image_folder, mtt, pairs, parquet
from pdd_lightning.data.formats.content import Content, ImportOptions, assemble
from pdd_lightning.data.formats.tensor_files import load_tensors
from pdd_lightning.data.formats.trajectories import is_trajectories
from pdd_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

Found = Literal["safetensors", "mtt", "idc", "dc", "folder", "parquet", "trajectories"]

_KNOWN = (
    "a distilled .safetensors file, images_*.pt beside labels_*.pt (MTT), data.pt (IDC), res_*.pt (DC, DSA, DM), a"
    " Parquet file, or a folder with train/<class>/<image>"
)


def open_distilled(
    path: str | Path,
    real: RealDataModule | None = None,
    options: ImportOptions = ImportOptions(),  # noqa: B008  (frozen)
    stored: bool = False,
) -> DistilledDataset:
    """Open a distilled set that this package, or the code of another method, wrote.

    Which form it is shows in the file itself; labels are always the file's. Forms other than this package's do not say
    their pixel space: images are taken to be in that of `real`, whose normalisation must be the one that they were
    distilled with (or, where they are stored as pixels in [0, 1], are brought there).

    Args:
        path: The file, or the folder of an image folder or of MTT's files.
        real: Real images of the same classes; not needed for `.safetensors` files.
        options: What the file does not say.
        stored: Give the images as they are stored, not decoded.

    Returns:
        The set, in the order of its stages.

    Raises:
        DataError: The file is missing, of no known form, holds code, or does not belong to the real data.
        DamagedFileError: The file is truncated or altered.
        ConfigError: An option is missing or contradicts the file.
    """
    form, path, content = _look(Path(path))
    if form == "safetensors":
        dataset = DistilledDataset(path, stored=True)
        options.check(path, dataset.num_stages, dataset.synthetic.decode_factor)
        return dataset if stored else DistilledDataset(path)
    if form == "trajectories":
        raise DataError(f"{path} holds expert trajectories, not a distilled set: `pdd convert` makes experts of it")
    if real is None:
        raise ConfigError(f"{path} says neither its pixel space nor its classes: name its data with --data")
    real.prepare_data()
    real.setup()
    return assemble(path, _read(form, path, content, real), real, options, stored)


def form_of(path: str | Path) -> Found:
    """Say what form a file has.

    Raises:
        DataError: It is missing, of no known form, or holds code.
        DamagedFileError: It is truncated or altered.
    """
    return _look(Path(path))[0]


def _read(form: Found, path: Path, content: Any, real: RealDataModule) -> Content:
    if form == "folder":
        return image_folder.read(path, real)
    if form == "parquet":
        return parquet.read(path, real)
    return {"mtt": mtt.read, "idc": pairs.read_idc, "dc": pairs.read_dc}[form](path, content)


def _look(path: Path) -> tuple[Found, Path, Any]:
    """Form, file, and what was read of it already."""
    if path.is_dir():
        if (path / mtt.IMAGES).is_file():
            return _look(path / mtt.IMAGES)
        if (path / image_folder.PART).is_dir():
            return "folder", path, None
        raise DataError(f"{path} is no distilled set of a known form: expected {_KNOWN}")
    head = _head(path)
    # First, for its length, which comes before, can look like the beginning of anything else.
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return "safetensors", path, None
    if head[:4] == b"PAR1":
        return "parquet", path, None
    if head[:2] == b"PK" or head[:1] == b"\x80" or path.suffix in (".pt", ".pth"):
        content = load_tensors(path)
        return _form_of_tensors(path, content), path, content
    raise DataError(f"{path} is no distilled set of a known form: expected {_KNOWN}")


def _form_of_tensors(path: Path, content: Any) -> Found:
    if isinstance(content, Tensor):
        return "mtt"
    if isinstance(content, dict) and "data" in content:
        return "dc"
    if is_trajectories(content):
        return "trajectories"
    if isinstance(content, list | tuple) and len(content) == 2:
        return "idc"
    raise DataError(f"{path} holds tensors, but is no distilled set of a known form: expected {_KNOWN}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise DataError(f"cannot read distilled set {path}: {error.strerror or error}") from error
