"""Mutation testing: changes one place of the package at a time and counts how many of the changes the tests notice.

    python -m tests.mutants --per_part 30 --seed 0 --output runs/mutants.md

Places are drawn at random in each part, and for each place one of the changes that cosmic-ray's operators make there.
The heavy libraries are imported once; every mutant is tested by a forked process in a copy of the tree. It runs the
part's test files that run the changed line, and ends at the first failure. A test that takes too long counts as failed.
Annotations, texts of errors and logs, and `strict` of zip are left alone.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PACKAGE = "pdd_lightning"
PARTS = ("stages", "experts", "progression", "evaluation", "training")  # of the package and of its tests
COMMON = "tests/test_settings.py"
HEAVY = ("lightning.pytorch", "torchvision", "torchmetrics.classification", "jsonargparse", "sklearn.cluster")
HEAVY += ("matplotlib.figure", "safetensors.torch", "torch.func", "higher")
WITH_ARGUMENTS = ("VariableReplacer", "VariableInserter")  # operators for chosen variables
MUTABLE = {"operator", "keyword", "number", "comparison", "factor", "not_test", "test", "decorator", "except_clause"}
MUTABLE |= {"if_stmt", "while_stmt", "assert_stmt", "for_stmt"}
TEXT_CALLS = {"rank_zero_info", "warn", "tqdm.write"}
SECONDS_PER_TEST = 20  # of processor time, which does not depend on how busy the machine is
WAITING = 600  # seconds after which a process is ended that only waits
MEMORY = 8 * 2**30

Position = tuple[int, int]
Ran = dict[str, dict[str, list[str]]]
"""For each file and line, the test files that run it."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file of the package, and the test files that are to notice it."""

    path: str
    line: int
    operator: str
    source: str
    tests: list[str]

    @property
    def part(self) -> str:
        """The folder that the file lies in."""
        return Path(self.path).parts[1]

    @property
    def diff(self) -> str:
        """The change, without context."""
        lines = difflib.unified_diff((ROOT / self.path).read_text().splitlines(), self.source.splitlines(), n=0)
        return "\n".join(list(lines)[3:])


class Watch:
    """Gives each test a limit of processor time and, with coverage, notes which test file runs which lines."""

    def __init__(self, cover: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.coverage = coverage.Coverage(data_file=None, include=[f"{PACKAGE}/*"]) if cover else None
        if self.coverage:
            self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        file, start = item.nodeid.split("::")[0], time.process_time()
        limit_seconds()
        if self.coverage:
            self.coverage.switch_context(file)
        result = yield
        self.seconds[file] += time.process_time() - start
        return result

    def save(self, path: Path) -> None:
        """Stores what was noted as JSON."""
        assert self.coverage is not None
        self.coverage.stop()
        data = self.coverage.get_data()
        ran = {str(Path(file).relative_to(Path.cwd())): data.contexts_by_lineno(file) for file in data.measured_files()}
        path.write_text(json.dumps({"ran": ran, "seconds": self.seconds}))


def limit_seconds() -> None:
    """Ends this process when it takes too long from here on."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS_PER_TEST, resource.RLIM_INFINITY))


def in_copy(base: Path, tests: Sequence[str], mutant: Mutant | None = None, notes: Path | None = None) -> None:
    """Runs tests in a copy of the tree, as a forked process that ends with pytest's exit code; see `copy_of`."""
    copy = copy_of(os.getpid())
    shutil.copytree(base, copy)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = sys.path[0] = str(copy)
    if mutant:
        (copy / mutant.path).write_text(mutant.source)
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.alarm(WAITING)
    limit_seconds()
    watch = Watch(cover=notes is not None)
    options = ["-x", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={copy}/.tmp"]
    # File by file: the first one tells most mutants, and collecting the others takes longer than running it.
    code = next(filter(None, (pytest.main([*options, file], plugins=[watch]) for file in tests)), 0)
    if notes:
        watch.save(notes)
    sys.stdout.flush()
    os._exit(code)


def copy_of(process: int) -> Path:
    """The copy of the tree that a process works on; whoever waits for the process removes it."""
    return Path(tempfile.gettempdir()) / f"mutant_{process}"


def forked(*arguments: Any) -> int:
    """Starts `in_copy` as a process of its own and returns the process's number."""
    process = os.fork()
    if process == 0:
        try:
            in_copy(*arguments)
        finally:
            os._exit(3)
    return process


def outcome() -> tuple[int, bool, str]:
    """Waits for a process: its number, whether its tests passed, and what pytest said in short."""
    process, status = os.wait()
    output = copy_of(process) / "output.txt"
    lines = output.read_text(errors="replace").splitlines() if output.exists() else []
    short = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or ["no result: too slow, or crashed"]
    shutil.rmtree(copy_of(process), ignore_errors=True)
    return process, status == 0, short[0]


def places(source: str) -> dict[Position, list[tuple[str, int]]]:
    """For each place that can be changed, the operators and their occurrences that change it."""
    provider, found = OperatorProvider(), defaultdict(list)
    nodes = [node for node in ast_nodes(get_ast(source)) if node.type in MUTABLE]
    hidden = unmeant(ast.parse(source))
    for name in sorted(set(provider) - set(WITH_ARGUMENTS)):
        operator = provider[name]()
        spans = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(spans):
            if not any(first <= start < last for first, last in hidden):
                found[start].append((name, occurrence))
    return dict(sorted(found.items()))


def unmeant(tree: ast.Module) -> list[tuple[Position, Position]]:
    """Where annotations, texts of errors and logs, and checks that two lists are equally long begin and end."""
    spans: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            spans.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            spans.append(node.returns)
        elif isinstance(node, ast.Raise):
            spans.append(node.exc)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in TEXT_CALLS:
            spans.append(node)
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            spans.append(node.value)
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in spans if node]


def sample(part: str, count: int, seed: int, ran: Ran, seconds: dict[str, float]) -> Iterator[Mutant]:
    """Mutants at `count` random places of a part, or at all if it has fewer."""
    sources = {path: path.read_text() for path in sorted((ROOT / PACKAGE / part).rglob("*.py"))}
    drawn = [(path, place, ways) for path, source in sources.items() for place, ways in places(source).items()]
    rng = random.Random(f"{seed} {part}")
    rng.shuffle(drawn)
    for path, (line, _), ways in drawn:
        changed = None
        for name, occurrence in rng.sample(ways, len(ways)):
            changed = mutate_code(sources[path], OperatorProvider()[name](), occurrence)
            if differs(sources[path], changed):
                break
        else:
            continue
        if count == 0:
            return
        count -= 1
        relative = str(path.relative_to(ROOT))
        tests = tests_of(line, ast.parse(sources[path]), ran.get(relative, {}), part)
        tests.sort(key=lambda file: (Path(file).stem != f"test_{path.stem}", seconds.get(file, 0.0)))
        yield Mutant(relative, line, name, changed, tests)


def differs(source: str, changed: str) -> bool:
    """Whether a changed source can be compiled and is another program."""
    try:
        return ast.dump(ast.parse(source)) != ast.dump(ast.parse(changed))
    except SyntaxError:
        return False


def tests_of(line: int, tree: ast.Module, ran: dict[str, list[str]], part: str) -> list[str]:
    """A part's test files that run a line; of what an import runs, those that run the function, class or file about it.

    Only lines in bodies of functions count as run by tests: which test imports a file first says nothing.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    bodies = {at for node in functions for at in range(node.body[0].lineno, node.end_lineno + 1)}
    known = {int(at): files for at, files in ran.items() if int(at) in bodies}
    about = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    spans = [(min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno) for node in about]
    spans = sorted((span for span in spans if span[0] <= line <= span[1]), key=lambda span: span[1] - span[0])
    if line in bodies:  # of a statement over several lines, perhaps only the first one is known
        first = max((at for at in known if at <= line), default=0)
        spans.insert(0, (first, first))
    for first, last in [*spans, (0, sys.maxsize)]:
        files = {file for at, files in known.items() if first <= at <= last for file in files}
        if found := [file for file in files if file.startswith(f"tests/{part}/")]:
            return [COMMON, *found]
    return [COMMON]


def measured(base: Path, parts: Sequence[str]) -> tuple[Ran, dict[str, float]]:
    """Runs the tests of some parts without a mutant; which test file runs what, and its processor seconds."""
    notes = base / "notes.json"
    folders = [ROOT / "tests" / part for part in parts]
    tests = [str(file.relative_to(ROOT)) for folder in folders for file in sorted(folder.glob("test_*.py"))]
    forked(base, [COMMON, *tests], None, notes)
    _, passed, short = outcome()
    if not passed:
        sys.exit(f"the tests fail without any mutant: {short}")
    found = json.loads(notes.read_text())
    return found["ran"], found["seconds"]


def results(base: Path, mutants: Sequence[Mutant], processes: int) -> Iterator[tuple[Mutant, bool, str]]:
    """Tests mutants in so many processes at a time: whether each survived, and what noticed it."""
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop()
            running[forked(base, mutant.tests, mutant)] = mutant
        process, survived, short = outcome()
        yield running.pop(process), survived, short


def report(done: Sequence[tuple[Mutant, bool, str]]) -> str:
    """A table of the parts, the survivors, and what noticed the others, as Markdown."""
    tested, killed = (Counter(mutant.part for mutant, survived, _ in done if keep or not survived) for keep in (1, 0))
    rows = [f"| {part} | {tested[part]} | {killed[part]} | {killed[part] / tested[part]:.0%} |" for part in tested]
    lines = ["| part | mutants | killed | share |", "|---|---|---|---|", *rows, "", "## Survivors", ""]
    for mutant, survived, _ in done:
        if survived:
            lines += [f"{mutant.path}:{mutant.line}", "", "```diff", mutant.diff, "```", ""]
    lines += ["## Killed", ""]
    lines += [f"- {one.path}:{one.line} {one.operator}: {short}" for one, survived, short in done if not survived]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draws mutants, tests them, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--per_part", type=int, default=30, help="mutants of each part")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/mutants.md"))
    options = parser.parse_args()
    for name in HEAVY:
        importlib.import_module(name)
    print("Running the tests without a mutant, to see which of them run which lines.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "tree"
        shutil.copytree(ROOT, base, ignore=shutil.ignore_patterns(".*", "runs", "data_*", "docs"))
        ran, seconds = measured(base, options.parts)
        drawn = [sample(part, options.per_part, options.seed, ran, seconds) for part in options.parts]
        mutants = list(itertools.chain.from_iterable(drawn))
        done = list(tqdm(results(base, mutants, options.processes), "Mutants", len(mutants)))
    text = report(done)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text.split("\n\n")[0], f"\nSurvivors: {options.output}")


if __name__ == "__main__":
    main()
