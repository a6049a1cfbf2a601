"""What this package does on a GPU: one command, the most useful figures first, as many as the minutes allow.

    python -m benchmarks.gpu --output FOLDER --minutes 14 --code mtt-distillation --root path/to/cifar10-as-files
    python -m benchmarks.gpu --output FOLDER --device cpu --size smallest    # tries the script; its figures say nothing

Every figure is written as soon as it is there (`gpu.json`, `gpu.md`), so that nothing is lost when time runs out. Parts
run in processes of their own: one that crashes or runs out of memory costs its own figures only.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from tabulate import tabulate

from benchmarks import peers
from benchmarks.cases import METHODS, Case, Iteration
from benchmarks.measure import environment, flops, now
from pdd_lightning.augment import DSA
from pdd_lightning.data import DistilledDataset
from pdd_lightning.data.pixels import Standardized
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.networks import ConvNet
from pdd_lightning.training import TrainingSettings, train_networks

Row: TypeAlias = dict[str, Any]
CONFIGS = Path(__file__).parents[1] / "configs"
PRECISIONS = ("float32", "tf32", "bf16")
MODES = ("stored", "constant")
STRATEGY = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Settings:
    """Sizes of what is measured; `SMALLEST` tries the script on a CPU.

    Attributes:
        device: cuda, or cpu to try the script.
        code: Checkout of the official MTT code; empty: ours alone.
        root: CIFAR-10 as image files; empty: without what needs it.
        width: Channels of the networks.
        size: Height and width of CIFAR's images, in pixels.
        images: Real images of an expert's epoch.
        networks: Numbers of networks that are trained at once.
        epochs: Epochs of a transition and of an evaluation.
        repeats: Timed rounds.
        recipes: Recipes that are run through two stages.
        options: Options that make these runs short.
        steps: Most student steps of an iteration.
    """

    device: str = "cuda"
    code: str = ""
    root: str = ""
    width: int = 128
    size: int = 32
    images: int = 50000
    networks: tuple[int, ...] = (1, 4, 8, 16)
    epochs: int = 20
    repeats: int = 3
    recipes: tuple[str, ...] = ("mtt", "datm", "dc", "dsa", "dm", "idc")
    options: tuple[str, ...] = (
        "--stages.num_stages=2", "--stages.iterations=40", "--stages.experts.number=4", "--stages.transition.epochs=20",
        "--evaluation.num_networks=2", "--evaluation.epochs=20", "--evaluation.full_data_epochs=0",
    )  # fmt: skip
    steps: int = 1000


SMALLEST = Settings("cpu", width=4, size=8, images=60, networks=(1, 2), epochs=1, repeats=1, recipes=("mtt",), steps=2,
    options=("--stages.num_stages=2", "--stages.iterations=3", "--stages.experts.number=2", "--checkpoint_every=1",
             "--stages.transition.epochs=1", "--evaluation.num_networks=1", "--evaluation.epochs=1",
             "--evaluation.full_data_epochs=0", "--model.max_start_epoch=1", "--model.expert_epochs=1"),
)  # fmt: skip


class Part(NamedTuple):
    """A part of the work.

    Attributes:
        title: What it measures.
        seconds: Roughly how long it takes on a large GPU; it is left out where less is left.
        rows: Measures, and gives the figures one by one.
        needs: Settings that must be given.
    """

    title: str
    seconds: int
    rows: Callable[[Settings, float], Iterator[Row]]
    needs: tuple[str, ...] = ()


def agreement(settings: Settings, left: float) -> Iterator[Row]:
    """Loss and image gradient of an iteration on the device and on the CPU, same draws, float32 without TF32."""
    for method in METHODS:
        for stage in (1, 2):
            with precision("float32", settings.device):
                results = [
                    Iteration(Case(method, stage, ipc=1, real_batch=8, syn_steps=5, size=16, width=32, device=device))(
                        "ours"
                    )
                    for device in ("cpu", settings.device)
                ]
            (loss, gradient), (other, other_gradient) = [[part.cpu() for part in result] for result in results]
            error = float((gradient - other_gradient).norm() / gradient.norm())
            yield {"method": method, "stage": stage, "loss": float(loss), "loss error": abs(float(other / loss) - 1),
                   "gradient error": error, "within 1e-4": abs(float(other / loss) - 1) < 1e-4}  # fmt: skip


def demo(settings: Settings, left: float) -> Iterator[Row]:
    """The demo's recipe, distilled and evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        shortened = settings.options if settings.device == "cpu" else ()
        seconds = {verb: pdd(settings, verb, folder, *shortened) for verb in ("fit", "test")}
        for row in _evaluated(folder):
            yield {**row, **{f"{verb}, s": value for verb, value in seconds.items()}}


def recipes(settings: Settings, left: float) -> Iterator[Row]:
    """Two short stages of each method, in float32 and bf16; for the first also killed and continued."""
    for name in settings.recipes:
        for kind in ("32-true", "bf16-mixed"):
            with tempfile.TemporaryDirectory() as folder:
                options = (*settings.options, f"--trainer.precision={kind}", "--trainer.deterministic=true")
                row = {"recipe": name, "precision": kind, "s": pdd(settings, "fit", folder, *options, recipe=name)}
                if name == settings.recipes[0]:
                    row["continued equal"] = _continues(settings, Path(folder), options, name)
                yield row


def iterations(settings: Settings, left: float) -> Iterator[Row]:
    """Iterations of trajectory matching at published sizes: seconds, and peak memory of the device."""
    cifar100 = {"classes": 100, "real_batch": 4}
    kinds = {
        "CIFAR-10, 20 x 20": {"ipc": 2, "syn_steps": 20, "batch_syn": 20},
        "CIFAR-10, 50 x 20": {"ipc": 2, "syn_steps": 50, "batch_syn": 20},
        "CIFAR-10, 30 x 100 of 500": {"ipc": 50, "syn_steps": 30, "batch_syn": 100},
        "CIFAR-100, 10 per class, 20 x 1000": {**cifar100, "ipc": 10, "syn_steps": 20, "batch_syn": 1000},
        "CIFAR-100, 50 per class, 80 x 125": {**cifar100, "ipc": 50, "syn_steps": 80, "batch_syn": 125},
        "Tiny-ImageNet, 10 per class, 20 x 200": {
            "classes": 200, "real_batch": 4, "ipc": 10, "syn_steps": 20, "batch_syn": 200, "size": 2 * settings.size,
            "depth": 4 if settings.size >= 16 else 3,
        },
    }  # fmt: skip
    for name, fields in kinds.items():
        fields = {"size": settings.size, "width": settings.width, **fields, "device": settings.device}
        fields["syn_steps"] = min(settings.steps, int(fields["syn_steps"]))
        for kind in PRECISIONS:
            for mode in MODES:
                case = Case("MTT", **fields)  # type: ignore[arg-type]
                yield {"work": name, "precision": kind, "mode": mode, **_iteration(case, kind, mode, settings)}


def where_time_goes(settings: Settings, left: float) -> Iterator[Row]:
    """One iteration in the profiler: kernels, how long the device was busy, and its speed beside a large product's."""
    for steps in (20, 50):
        for mode in MODES:
            sizes = {"size": settings.size, "width": settings.width, "syn_steps": min(settings.steps, steps)}
            case = Case("MTT", batch_syn=20, real_batch=4, device=settings.device, **sizes)  # type: ignore[arg-type]
            one = Iteration(case)
            one.stage.unroll_mode = mode  # type: ignore[assignment]
            one("ours"), one("ours")
            begin = now(settings.device)
            one("ours")
            seconds = now(settings.device) - begin
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities[: 1 + (settings.device != "cpu")]) as profile:
                one("ours")
                now(settings.device)
            kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
            busy = sum(event.device_time for event in kernels) / 1e6  # type: ignore[attr-defined]
            speed = flops(lambda one=one: one("ours")) / seconds  # type: ignore[misc]
            row = {"work": f"{case.syn_steps} x 20", "mode": mode, "s": seconds, "kernels": len(kernels)}
            share = speed / _product(settings)
            yield {**row, "busy": busy / seconds, "TFLOP/s": speed / 1e12, "to a large product": share}


def beside_the_official_code(settings: Settings, left: float) -> Iterator[Row]:
    """The official MTT code, unchanged, and ours in turn; see `benchmarks.peers`."""
    for work in list(peers.WORK)[1:]:
        if work != "expert, epoch of 5,000 images":
            yield from peers.measure(settings.code, settings.root, settings.repeats, [work], device=settings.device)


def experts(settings: Settings, left: float) -> Iterator[Row]:
    """An epoch of experts on real images, one network and several at once."""
    for number in settings.networks:
        for kind in PRECISIONS:
            for layout in ("contiguous_format", "channels_last"):
                training = TrainingSettings(1, momentum=0.0, weight_decay=0.0, milestones=())
                row = {"networks": number, "precision": kind, "layout": layout}
                yield {**row, **_training(settings, number, settings.images, training, kind, layout)}


def transitions(settings: Settings, left: float) -> Iterator[Row]:
    """Training on a union of 100 images, as in transitions and evaluations, one network and several at once."""
    for number in sorted({*settings.networks, min(10, 5 * max(settings.networks))}):
        for kind in PRECISIONS[:: len(PRECISIONS) - 1]:
            row = {"networks": number, "precision": kind, "epochs": settings.epochs}
            yield {**row, **_training(settings, number, 100, TrainingSettings(settings.epochs), kind)}


def methods(settings: Settings, left: float) -> Iterator[Row]:
    """An iteration of each method at published sizes, in stages 1 and 5."""
    for method in METHODS:
        for stage in (1, 5):
            case = Case(method, stage, size=settings.size, width=settings.width, syn_steps=min(50, settings.steps),
                        real_batch=256 if settings.device != "cpu" else 4, device=settings.device)  # fmt: skip
            yield {"method": method, "stage": stage, **_iteration(case, "float32", "stored", settings)}


def whole_run(settings: Settings, left: float) -> Iterator[Row]:
    """CIFAR-10 by the published recipe, cut to half of the time that is left, beside one stage of the same total."""
    small = settings.device == "cpu"
    per_second = {"experts": 0.02, "iterations": 2.0}  # of a large GPU; what was done is in the rows
    experts, total = (
        (2, 4) if small else (max(2, int(per_second["experts"] * left)), int(per_second["iterations"] * left))
    )
    for stages in (2, 1):
        with tempfile.TemporaryDirectory() as folder:
            options = [
                f"--data.real.root={settings.root}",
                f"--data.real.image_size={settings.size}",
                f"--stages.num_stages={stages}",
                f"--stages.iterations={total // stages}",
                f"--stages.experts.number={experts}",
                f"--model.ipc={10 // stages}",
                f"--model.syn_steps={min(30, settings.steps)}",
                "--model.batch_syn=20",
                "--evaluation.full_data_epochs=0",
                "--evaluation.epochs=300",
            ]
            if small:
                options += [
                    *settings.options[3:],
                    "--model.ipc=2",
                    "--model.network.width=4",
                    "--model.network.depth=2",
                ]
            seconds = {verb: pdd(settings, verb, folder, *options, recipe="folder_mtt") for verb in ("fit", "test")}
            done = {"stages": stages, "experts": experts, "iterations": total, "s": sum(seconds.values())}
            yield from ({**done, **row} for row in _evaluated(folder))


PARTS = (
    Part("Agreement with the CPU", 30, agreement),
    Part("The demo", 60, demo),
    Part("Iterations of trajectory matching", 100, iterations),
    Part("Where the time goes", 20, where_time_goes),
    Part("Beside the official code", 150, beside_the_official_code, ("code", "root")),
    Part("Epochs of experts", 60, experts),
    Part("Transitions and evaluations", 20, transitions),
    Part("Iterations of all methods", 30, methods),
    Part("Short runs", 150, recipes),
    Part("A whole run", 120, whole_run, ("root",)),
)


def measure(settings: Settings, output: Path, minutes: float, parts: tuple[Part, ...] = PARTS) -> dict[str, Any]:
    """Runs the parts in order, and writes what they give as it comes.

    Args:
        settings: Sizes.
        output: Folder for `gpu.json` and `gpu.md`.
        minutes: Time for everything.
        parts: What to run.
    """
    deadline = time.monotonic() + 60 * minutes
    results: dict[str, Any] = {
        "command": sys.argv,
        "settings": asdict(settings),
        "environment": environment(settings.device),
    }
    sections: dict[str, dict[str, Any]] = {}
    results["parts"] = sections
    for part in parts:
        section = sections[part.title] = {"about": (part.rows.__doc__ or "").strip(), "rows": [], "remark": ""}
        left, missing = deadline - time.monotonic(), [name for name in part.needs if not getattr(settings, name)]
        if missing or left <= part.seconds * (settings.device != "cpu"):
            due = f"{max(0, left):.0f} s are left, it takes about {part.seconds}"
            section["remark"] = f"Skipped: {'needs --' + ' and --'.join(missing) if missing else due}."
            _write(results, output)
            continue
        begin = time.monotonic()
        for row in _isolated(part, settings, left, section):
            section["rows"].append(row)
            section["seconds"] = round(time.monotonic() - begin, 1)
            _write(results, output)
        _write(results, output)
    return results


def _isolated(part: Part, settings: Settings, left: float, section: dict[str, Any]) -> Iterator[Row]:
    """Rows of a part, computed by a process of its own; why it ended early is noted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.cases", "benchmarks.peers"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(sender, part, settings, left))
    process.start()
    sender.close()
    deadline = time.monotonic() + left
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            kind, value = receiver.recv()
            if kind != "row":
                section["remark"] = value
                return
            yield value
        section["remark"] = "Cut: no time was left."
    except EOFError:
        section["remark"] = "Failed: its process ended."
    finally:
        process.kill()
        process.join()


def _send_rows(sender: Connection, part: Part, settings: Settings, left: float) -> None:
    try:
        for row in part.rows(settings, left):
            sender.send(("row", row))
        sender.send(("end", ""))
    except Exception as error:
        sender.send(("end", f"Failed: {type(error).__name__}: {str(error).strip()[:500]}"))


def _write(results: dict[str, Any], output: Path) -> None:
    parts = [f"# On a GPU\n\n{results['environment']}\n"]
    for title, section in results["parts"].items():
        rows = tabulate(section["rows"], "keys", "pipe", floatfmt=".4g")
        parts.append(f"## {title}\n\n{section['about']}\n\n{rows}\n\n{section['remark']}".rstrip() + "\n")
    atomic_write_bytes(output / "gpu.md", "\n".join(parts).encode())
    atomic_write_json(output / "gpu.json", results)


def precision(kind: str, device: str) -> AbstractContextManager[Any]:
    """Compute in float32 (`float32`, or `tf32` with shorter products), or in bfloat16 where it is safe."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    return torch.autocast(device, torch.bfloat16) if kind == "bf16" else nullcontext()


def _evaluated(folder: str) -> list[Row]:
    """Rows of the evaluation of a run."""
    rows = json.loads(Path(folder, "summary.json").read_text())["evaluation"]
    return [
        {"images": row["row"], "part": row["part"], "accuracy %": 100 * row["mean"], "std %": 100 * row["std"]}
        for row in rows
    ]


def _iteration(case: Case, kind: str, mode: str, settings: Settings) -> Row:
    """Median seconds of an iteration, and the device's peak memory."""
    try:
        with precision(kind, case.device):
            one = Iteration(case)
            if case.method == "MTT":
                one.stage.unroll_mode = mode  # type: ignore[assignment]
            return _timed(lambda: one("ours"), case.device, settings.repeats)
    except torch.OutOfMemoryError:
        return {"remark": "out of memory"}
    finally:
        _free(case.device)


def _training(
    settings: Settings,
    number: int,
    images: int,
    training: TrainingSettings,
    kind: str,
    layout: str = "contiguous_format",
) -> Row:
    """Seconds per network of a training on random images, and the device's peak memory."""
    pixels = torch.randint(256, (images, 3, settings.size, settings.size), dtype=torch.uint8)
    encoded = EncodedImages(pixels, Standardized([0.5] * 3, [0.25] * 3), settings.device)
    labels = torch.arange(images, device=settings.device) % 10
    depth = 3 if settings.size >= 16 else 2
    networks = [ConvNet(3, 10, settings.size, depth, settings.width).to(settings.device) for _ in range(number)]
    for network in networks:
        network.to(memory_format=getattr(torch, layout))  # type: ignore[call-overload]

    def train() -> None:
        sources = [torch.Generator().manual_seed(one) for one in range(number)]
        train_networks(networks, [encoded] * number, [labels] * number, training, DSA(STRATEGY), sources)

    try:
        with precision(kind, settings.device):
            row = _timed(train, settings.device, 1)
            return {**row, "s / network": row["s"] / number}
    except torch.OutOfMemoryError:
        return {"remark": "out of memory"}
    finally:
        _free(settings.device)


def _timed(call: Callable[[], object], device: str, repeats: int) -> Row:
    call()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin = now(device)
        call()
        times.append(now(device) - begin)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else float("nan")
    return {"s": statistics.median(times), "GB": peak}


def _free(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()


def _product(settings: Settings) -> float:
    """Floating-point operations per second of a large matrix product."""
    side = 8192 if settings.device != "cpu" else 64
    left = torch.randn(side, side, device=settings.device)
    return 2 * side**3 / float(_timed(lambda: left @ left, settings.device, 3)["s"])


def pdd(settings: Settings, verb: str, folder: str, *options: str, recipe: str = "mtt") -> float:
    """Run a command, and return its seconds."""
    begin = time.monotonic()
    subprocess.run(_command(settings, verb, folder, options, recipe), check=True, capture_output=True, text=True)
    return time.monotonic() - begin


def _command(settings: Settings, verb: str, folder: str, options: tuple[str, ...], recipe: str) -> list[str]:
    name = recipe if "_" in recipe else f"digits_{recipe}"
    accelerator = "cpu" if settings.device == "cpu" else "gpu"
    return [sys.executable, "-W", "ignore", "-m", "pdd_lightning", verb, f"--config={CONFIGS / 'recipe' / name}.yaml",
            f"--trainer.default_root_dir={folder}", f"--trainer.accelerator={accelerator}",
            "--trainer.enable_progress_bar=false", *options]  # fmt: skip


def _continues(settings: Settings, whole: Path, options: tuple[str, ...], recipe: str) -> bool:
    """Whether a run that is killed in its first stage, and continued, ends with the images of the whole one."""
    with tempfile.TemporaryDirectory() as folder:
        begun = _command(settings, "fit", folder, options, recipe)
        process = subprocess.Popen(begun, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not Path(folder, "checkpoints", "last.ckpt").exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pdd(settings, "fit", folder, *options, "--ckpt_path=last", recipe=recipe)
        sets = [DistilledDataset(path / "distilled.safetensors") for path in (whole, Path(folder))]
        return bool(torch.equal(sets[0].images, sets[1].images))


def main(words: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=25, help="time for everything")
    parser.add_argument("--code", default="", help="checkout of mtt-distillation, to run beside ours")
    parser.add_argument("--root", default="", help="CIFAR-10 as image files: train/<class>/, test/<class>/")
    parser.add_argument("--device", default="cuda", help="cuda; cpu tries the script")
    parser.add_argument("--size", choices=["full", "smallest"], default="full", help="smallest: to try the script")
    parser.add_argument("--parts", nargs="+", choices=[part.rows.__name__ for part in PARTS], help="some parts alone")
    args = parser.parse_args(words)
    sizes = Settings() if args.size == "full" else SMALLEST
    settings = replace(sizes, device=args.device, code=args.code, root=args.root)
    chosen = tuple(part for part in PARTS if not args.parts or part.rows.__name__ in args.parts)
    measure(settings, args.output, args.minutes, chosen)
    print((args.output / "gpu.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
