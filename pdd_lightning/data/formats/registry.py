"""Registry of the file formats of distilled sets, and opening a set in any of them.

A new format is a subclass of `Format` with the decorator `register` in a file of this folder; `open_distilled`,
`pdd convert` and the help texts include it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.hub import local_file
from pdd_lightning.errors import ConfigError, DataError, check_at_least
from pdd_lightning.stored import load_tensors, read_bytes

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule


@dataclass(frozen=True)
class ImportOptions:
    """Facts about a distilled set that files of other formats lack.

    Attributes:
        num_stages: Stages of a set that was distilled progressively; null takes that of the file, or one.
        decode_factor: Each stored image is decoded to `decode_factor`^2 training images (IDC); null takes that of the
            file, or 1 for formats without decoding.
    """

    num_stages: int | None = None
    decode_factor: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, num_stages=self.num_stages, decode_factor=self.decode_factor)

    def check(self, path: Path, num_stages: int | None = None, decode_factor: int | None = None) -> None:
        """Refuse options that contradict the values stored in a file; None if it lacks them."""
        for name, stored in {"num_stages": num_stages, "decode_factor": decode_factor}.items():
            given = getattr(self, name)
            if None not in (stored, given) and given != stored:
                raise ConfigError(f"{path} has {name} {stored}: leave out {name} {given}")


class Format(ABC):
    """A file format of distilled sets; a read-only one leaves out `write`.

    Attributes:
        name: Name on the command line.
        files: Description of its files.
        suffix: Suffix of file names that selects this format for writing, if any.
        is_folder: Whether a set is a folder rather than a file.
        in_model_space: Whether images are stored in a model space that the files do not describe, assumed to be that of
            the real data.
    """

    name: ClassVar[str]
    files: ClassVar[str]
    suffix: ClassVar[str | None] = None
    is_folder: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = False

    @abstractmethod
    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether a file or folder has this format.

        Args:
            path: The file or folder.
            content: Content of a file of `torch.save`, the first 9 bytes of any other file, None for a folder.
        """

    @abstractmethod
    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set as it is stored; see `open_distilled` for arguments and errors."""

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write a set and replace existing files; `save` checks whether it may.

        Raises:
            ConfigError: The format cannot represent the set.
        """
        raise ConfigError(f"distilled sets cannot be written as {self.files}")

    def targets(self, path: Path) -> list[Path]:
        """Return the files or folders that `write` replaces."""
        return [path]

    def omissions(self, dataset: DistilledDataset) -> list[str]:
        """Return sentences on what the format does not store, or how the set has to be read."""
        return []

    def save(self, path: str | Path, dataset: DistilledDataset, overwrite: bool = False) -> list[str]:
        """Write a set, with its images stored or decoded as they are, and return the `omissions`.

        Args:
            path: The file or folder to write.
            dataset: The set.
            overwrite: Replace an existing set.

        Raises:
            ConfigError: The target exists, or the set cannot be written in this format.
        """
        path = Path(path)
        for target in self.targets(path):
            if target.exists() and not overwrite:
                raise ConfigError(f"{target} exists: choose another name, or replace it with --overwrite true")
        if path.exists() and path.is_dir() != self.is_folder:
            raise ConfigError(f"{path} is a {'folder' if path.is_dir() else 'file'}: choose another name")
        self.write(path, dataset)
        return self.omissions(dataset)


FORMATS: dict[str, Format] = {}
"""All formats by name, in the order in which they are tried."""

FormatClass = TypeVar("FormatClass", bound=type[Format])


def register(cls: FormatClass) -> FormatClass:
    """Add a format to `FORMATS`."""
    FORMATS[cls.name] = cls()
    return cls


@register
class Safetensors(Format):
    """The format of this package, which stores everything."""

    name, files, suffix = "safetensors", "a distilled .safetensors file", ".safetensors"

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether JSON follows the 8 bytes of the header's length."""
        return isinstance(content, bytes) and (content[8:] == b"{" or path.suffix == self.suffix)

    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set, without need of real data or options."""
        dataset = DistilledDataset(path, stored=True)
        options.check(path, dataset.num_stages, dataset.synthetic.decode_factor)
        return dataset

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write everything."""
        save_distilled(path, dataset.synthetic, dataset.pixels, dataset.class_names, dataset.about())


def writable_formats() -> dict[str, Format]:
    """Return the formats that sets can be written in, by name."""
    return {name: known for name, known in FORMATS.items() if type(known).write is not Format.write}


def target_format(path: str | Path, name: str | None = None) -> Format:
    """Return the format to write, by its name or else by the suffix of the path.

    Raises:
        ConfigError: There is no such format.
    """
    formats = writable_formats()
    for known in formats.values():
        if known.name == name or (name is None and Path(path).suffix == known.suffix):
            return known
    raise ConfigError(f"the name {path} does not determine a format: choose one of {', '.join(formats)} with --format")


def find_format(path: str | Path) -> Format:
    """Return the format of a file or folder, as its content shows.

    Raises:
        DataError: It is missing, of no known format, or holds code.
        DamagedFileError: It is truncated or altered.
    """
    content = _peek(Path(path))
    for known in FORMATS.values():
        if known.sniff(Path(path), content):
            return known
    files = ", ".join(known.files for known in FORMATS.values())
    raise DataError(f"{path} is no distilled set of a known format: expected one of {files}")


def open_distilled(
    path: str | Path,
    real: RealDataModule | None = None,
    options: ImportOptions = ImportOptions(),
    stored: bool = False,
) -> DistilledDataset:
    """Open a distilled set written by this package or by the code of other methods.

    The format follows from the content of the file. Formats other than this package's do not describe their pixel
    space: images are assumed to be in that of `real`, whose normalization must be the one that they were distilled with
    (images stored as pixels in [0, 1] are mapped to it).

    Args:
        path: The file or folder, or another source of `pdd_lightning.data.hub.local_file`.
        real: Real images of the same classes; not needed for `.safetensors` files.
        options: Facts that the file lacks.
        stored: Keep the images as they are stored, not decoded.

    Returns:
        The set, sorted by stage.

    Raises:
        DataError: The file is missing, of no known format, holds code, or does not belong to the real data.
        DamagedFileError: The file is truncated or altered.
        ConfigError: An option is missing or contradicts the file.
    """
    path = local_file(path)
    read = find_format(path).read(path, real, options)
    return read if stored else DistilledDataset.of(read.synthetic, read.pixels, read.class_names, read.metadata)


def _peek(path: Path) -> Any:
    """Return the content of a file of `torch.save`, the first 9 bytes of any other file, None for a folder."""
    if path.is_dir():
        return None
    head = read_bytes(path, part=9)
    # The header's length, with which safetensors files begin, can be any bytes.
    is_json = head[8:] == b"{"
    is_saved = head.startswith((b"PK", b"\x80")) or path.suffix in (".pt", ".pth")
    return load_tensors(path) if is_saved and not is_json else head
