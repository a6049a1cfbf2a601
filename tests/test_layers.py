"""Who may import whom, who may touch files, and what importing the package costs."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pdd_lightning"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
# From the highest group to the lowest: nobody imports from a higher one.
GROUPS = [
    {"api"},
    {"cli", "__main__"},
    {"commands"},
    {"studies"},
    {"callbacks"},
    {"progression"},
    {"stages", "evaluation"},
    {"experts"},
    {"results"},
    {"data"},
    {"training"},
    {"metrics", "objectives", "unroll", "augment", "networks"},
    {"kernels"},
    {"typing", "errors", "endings", "files", "stored", "shorthand", "randomness", "distributed", "progress", "memory"},
]
PLAIN_TORCH = set().union(*GROUPS[GROUPS.index({"training"}) :])
TOUCH_FILES = (
    "data/",
    "experts/trajectory_store.py",
    "results/",
    "callbacks/export.py",
    "callbacks/checkpoint.py",
    "api.py",
    "cli.py",
    "commands/",
    "studies/",
    "files.py",
    "stored.py",
    "shorthand.py",
    "distributed.py",
    "kernels/compiled.py",
    "memory.py",
    "endings.py",
    "__main__.py",
)
# Calls that read, write or look for files, by the name that is called; and modules for it.
FILE_CALLS = {
    "atomic_write_bytes", "atomic_write_json", "exists", "glob", "is_dir", "is_file", "iterdir", "load_file", "mkdir",
    "open", "read_bytes", "read_text", "rename", "rglob", "rmdir", "safe_open", "save_checkpoint", "save_distilled",
    "save_file", "stat", "symlink_to", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
FILE_CALLS_OF_TORCH = {"load", "save"}
FILE_MODULES = {"glob", "io", "os", "pickle", "safetensors", "shutil", "tempfile", "zipfile"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, also inside functions and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Parts of this package that a file imports, such as `data.real.RealDataModule`."""
    for name in imports(path):
        if name.startswith("pdd_lightning.") and name != "pdd_lightning.__version__":
            yield name.removeprefix("pdd_lightning.")


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def level(part: str) -> int:
    """Number of a part's group."""
    (number,) = [number for number, parts in enumerate(GROUPS) if part in parts]
    return number


def in_files(find: Callable[[Path], Iterable[str]], files: Iterable[Path] = FILES) -> dict[str, list[str]]:
    """What a search finds, by file."""
    found = {name_of(path): list(find(path)) for path in files}
    return {name: items for name, items in found.items() if items}


def test_every_file_belongs_to_a_group():
    assert {part_of(path) for path in FILES} <= set().union(*GROUPS)


def test_nobody_imports_from_a_higher_group():
    def too_high(path):
        return [name for name in own_imports(path) if level(name.split(".")[0]) < level(part_of(path))]

    assert in_files(too_high) == {}


def test_the_package_itself_is_not_imported_as_a_whole():
    assert in_files(lambda path: {"pdd_lightning"} & set(imports(path))) == {}


def test_maths_and_training_know_nothing_of_lightning():
    plain = [path for path in FILES if part_of(path) in PLAIN_TORCH]
    assert in_files(lambda path: top_level(path) & {"lightning", "pytorch_lightning"}, plain) == {}


def test_only_the_unrolled_loop_imports_higher():
    importers = in_files(lambda path: top_level(path) & {"higher"})
    assert importers and all(name.startswith("unroll/") for name in importers)


def test_methods_import_no_other_than_the_one_they_extend():
    extended = {name: {"trajectory_matching"} for name in ("datm", "ftd")}
    extended |= {name: {"decoded_images"} for name in ("characteristic_matching", "idc")}

    def other_methods(path):
        parts = [name.split(".") for name in own_imports(path)]
        return {part[1] for part in parts if part[0] == "stages"} - {"stage"} - extended.get(path.stem, set())

    methods = [path for path in FILES if part_of(path) == "stages" and path.name != "__init__.py"]
    assert methods and in_files(other_methods, methods) == {}


def file_uses(path: Path) -> Iterator[str]:
    """What in a file has to do with files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = function.value if isinstance(function, ast.Attribute) else None
        of_torch = isinstance(owner, ast.Name) and owner.id in ("torch", "np", "numpy")
        if called in FILE_CALLS or (of_torch and called in FILE_CALLS_OF_TORCH):
            yield f"line {node.lineno}: {called}"
    yield from sorted(top_level(path) & FILE_MODULES)


def test_few_places_touch_files():
    users = in_files(file_uses)
    assert {name: uses for name, uses in users.items() if not name.startswith(TOUCH_FILES)} == {}
    idle = [place for place in TOUCH_FILES if not any(name.startswith(place) for name in users)]
    assert idle == [], "places that may touch files but do not: the list is out of date, or the check is blind"


def writer_uses(path: Path) -> Iterator[str]:
    """Where a file has to do with a logger's writer."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "experiment":
            yield f"line {node.lineno}: .experiment"
    yield from (name for name in imports(path) if name.rpartition(".")[2] == "SummaryWriter" or "tensorboard." in name)


def test_only_callbacks_use_a_loggers_writer():
    users = in_files(writer_uses)
    assert users and all(name.startswith("callbacks/") for name in users)


def test_importing_is_light():
    heavy = "{'lightning', 'torchvision', 'torchmetrics', 'higher', 'sklearn', 'tensorboard'}"
    parts = "from pdd_lightning import DistilledDataset, augment, networks, objectives, unroll"
    code = f"import sys; {parts}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert result.stdout.strip() == "[]"
