"""The formats that distilled sets are kept in, and opening a set of any of them.

A new format is one subclass of `Format`, with the decorator `register`, in one file of this folder: `open_distilled`,
`pdd convert` and the help texts then know it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.hub import local_file
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.stored import load_tensors, read_bytes

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule


@dataclass(frozen=True)
class ImportOptions:
    """What files of other formats do not say about a distilled set.

    Attributes:
        num_stages: Stages of a set that was distilled progressively; null takes what the file says, or one.
        decode_factor: Each stored image stands for `decode_factor`^2 training images (IDC); null takes what the file
            says, or 1 for the formats whose images always stand for themselves.

    Raises:
        ConfigError: A number is below 1.
    """

    num_stages: int | None = None
    decode_factor: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")

    def check(self, path: Path, num_stages: int | None = None, decode_factor: int | None = None) -> None:
        """Refuse options that contradict what a file says itself; None: it does not say."""
        for name, stored in {"num_stages": num_stages, "decode_factor": decode_factor}.items():
            given = getattr(self, name)
            if None not in (stored, given) and given != stored:
                raise ConfigError(f"{path} itself says {name} {stored}: leave out {name} {given}")


class Format(ABC):
    """A way to keep a distilled set in files; one that is only read leaves out `write`.

    Attributes:
        name: What the command line calls it.
        files: What its files are called, or look like.
        suffix: Suffix of a file's name by which this format is chosen for writing, if any.
        is_folder: Whether a set is a folder, not a file.
        in_model_space: Whether images are kept in a model space that the files do not say, which is taken to be that of
            the real data.
    """

    name: ClassVar[str]
    files: ClassVar[str]
    suffix: ClassVar[str | None] = None
    is_folder: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = False

    @abstractmethod
    def sniff(self, path: Path, content: Any) -> bool:
        """Whether a file or folder is of this format.

        Args:
            path: The file or folder.
            content: What a file of `torch.save` holds, the first 9 bytes of any other file, None for a folder.
        """

    @abstractmethod
    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set as it is stored; arguments and errors are those of `open_distilled`."""

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write a set in place of what is there; `save` checks that it may be replaced.

        Raises:
            ConfigError: This format cannot hold such a set.
        """
        raise ConfigError(f"distilled sets cannot be written as {self.files}")

    def targets(self, path: Path) -> list[Path]:
        """Return the files or folders that `write` replaces."""
        return [path]

    def omissions(self, dataset: DistilledDataset) -> list[str]:
        """Return what of a set the format does not keep, or how it has to be read, a sentence each."""
        return []

    def save(self, path: str | Path, dataset: DistilledDataset, overwrite: bool = False) -> list[str]:
        """Write a set, its images as they are, stored or decoded, and return the `omissions`.

        Args:
            path: The file, or the folder if the format is one.
            dataset: The set.
            overwrite: Replace what is there.

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

Kind = TypeVar("Kind", bound=type[Format])


def register(kind: Kind) -> Kind:
    """Add a format to `FORMATS`."""
    FORMATS[kind.name] = kind()
    return kind


@register
class Safetensors(Format):
    """This package's own format, which keeps everything."""

    name, files, suffix = "safetensors", "a distilled .safetensors file", ".safetensors"

    def sniff(self, path: Path, content: Any) -> bool:
        """Whether the file's header is JSON, after its length of 8 bytes."""
        return isinstance(content, bytes) and (content[8:] == b"{" or path.suffix == self.suffix)

    def read(self, path: Path, real: RealDataModule | None, options: ImportOptions) -> DistilledDataset:
        """Return the set; neither real data nor options are needed."""
        dataset = DistilledDataset(path, stored=True)
        options.check(path, dataset.num_stages, dataset.synthetic.decode_factor)
        return dataset

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write everything."""
        save_distilled(path, dataset.synthetic, dataset.pixels, dataset.class_names, dataset.about())


def writable_formats() -> dict[str, Format]:
    """Return the formats that sets can be written in, by name."""
    return {name: kind for name, kind in FORMATS.items() if type(kind).write is not Format.write}


def target_format(path: str | Path, name: str | None = None) -> Format:
    """Return the format to write: the one that is named, or else that of the suffix.

    Raises:
        ConfigError: There is no such format.
    """
    known = writable_formats()
    for kind in known.values():
        if kind.name == name or (name is None and Path(path).suffix == kind.suffix):
            return kind
    raise ConfigError(f"the name {path} does not say what to write: choose one of {', '.join(known)} with --format")


def find_format(path: str | Path) -> Format:
    """Return the format of a file or folder, by looking into it.

    Raises:
        DataError: It is missing, of no known format, or holds code.
        DamagedFileError: It is truncated or altered.
    """
    content = _peek(Path(path))
    for kind in FORMATS.values():
        if kind.sniff(Path(path), content):
            return kind
    known = ", ".join(kind.files for kind in FORMATS.values())
    raise DataError(f"{path} is no distilled set of a known format: expected one of {known}")


def open_distilled(
    path: str | Path,
    real: RealDataModule | None = None,
    options: ImportOptions = ImportOptions(),
    stored: bool = False,
) -> DistilledDataset:
    """Open a distilled set that this package, or the code of another method, wrote.

    Which format it is shows in the file itself; labels are always the file's. Formats other than this package's do not
    say their pixel space: images are taken to be in that of `real`, whose normalisation must be the one that they were
    distilled with (or, where they are stored as pixels in [0, 1], are brought there).

    Args:
        path: The file, or the folder if the format is one; or see `pdd_lightning.data.hub.local_file`.
        real: Real images of the same classes; not needed for `.safetensors` files.
        options: What the file does not say.
        stored: Give the images as they are stored, not decoded.

    Returns:
        The set, in the order of its stages.

    Raises:
        DataError: The file is missing, of no known format, holds code, or does not belong to the real data.
        DamagedFileError: The file is truncated or altered.
        ConfigError: An option is missing or contradicts the file.
    """
    path = local_file(path)
    read = find_format(path).read(path, real, options)
    return read if stored else DistilledDataset.of(read.synthetic, read.pixels, read.class_names, read.metadata)


def _peek(path: Path) -> Any:
    """Return what a file of `torch.save` holds, the first bytes of any other file, and None for a folder."""
    if path.is_dir():
        return None
    head = read_bytes(path, part=9)
    # The length that safetensors files begin with, before their header in JSON, can look like anything.
    is_json = head[8:] == b"{"
    is_saved = head.startswith((b"PK", b"\x80")) or path.suffix in (".pt", ".pth")
    return load_tensors(path) if is_saved and not is_json else head
