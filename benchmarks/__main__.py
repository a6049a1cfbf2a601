"""All benchmarks as one Markdown document: `python -m benchmarks`, or small ones with `--size quick`."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import methods, peers, pools, processes, unroll
from benchmarks.cases import METHODS
from benchmarks.measure import environment

SECTIONS = {
    "methods": ("Methods", methods),
    "pools": ("Pools of networks", pools),
    "unroll": ("Forms of the inner loop", unroll),
    "peers": ("Beside the official code", peers),
    "processes": ("Several processes", processes),
}
FULL: dict[str, dict[str, Any]] = {
    "methods": {"methods": list(METHODS), "stages": [1, 5], "repeats": 3},
    "pools": {"methods": ["IDC", "DSA", "DM"], "repeats": 3},
    "unroll": {"steps": [10, 50], "repeats": 3},
    "peers": {"repeats": 3},
    "processes": {"processes": [1, 2], "repeats": 3, "stages.iterations": 200},
}
QUICK: dict[str, dict[str, Any]] = {
    "methods": {**FULL["methods"], "width": 32, "size": 16, "real_batch": 64, "syn_steps": 5},
    "pools": {**FULL["pools"], "width": 32, "size": 16, "real_batch": 64},
    "unroll": {"steps": [5], "repeats": 3, "width": 32, "size": 16},
    "peers": {"repeats": 1, "work": ["iteration, 10 steps x 20 images"]},
    "processes": {"processes": [1, 2], "repeats": 1, "stages.iterations": 100},
}
SMALLEST: dict[str, dict[str, Any]] = {
    "methods": {"methods": list(METHODS), "stages": [1, 2], "repeats": 1, "width": 4, "size": 8, "real_batch": 4,
                "syn_steps": 2, "classes": 2},
    "pools": {"methods": ["IDC", "DSA", "DM"], "repeats": 1, "width": 4, "size": 8, "real_batch": 4},
    "unroll": {"steps": [2], "repeats": 1, "width": 4, "size": 8, "batch": 4},
    "peers": {"repeats": 1, "work": ["transition, 5 epochs on 100 images"], "width": 4},
    "processes": {"processes": [1], "repeats": 1, "stages.iterations": 2, "stages.experts.number": 1,
                  "model.max_start_epoch": 1, "model.expert_epochs": 1, "stages.transition.epochs": 2},
}  # fmt: skip
SIZES = {"full": FULL, "quick": QUICK, "smallest": SMALLEST}


def parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full", help="full: published sizes; smallest: for tests")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--official", default="", help="checkout of mtt-distillation, to run beside ours")
    parser.add_argument("--images", default="", help="CIFAR-10 as image files, for experts beside the official code")
    parser.add_argument("--output", type=Path, help="folder for benchmarks.md and benchmarks.json")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure, print the document, and store it with its figures."""
    args = parse(words)
    torch.set_num_threads(args.threads)
    command = shlex.join(["python", "-m", "benchmarks", *words])
    results: dict[str, Any] = {"command": command, "environment": environment(args.device)}
    parts = [_head(results)]
    print(parts[0], end="")
    for name in args.sections:
        title, benchmark = SECTIONS[name]
        settings = SIZES[args.size][name]
        of_peers = {"code": args.official, "root": args.images, "threads": args.threads} if name == "peers" else {}
        rows = benchmark.measure(**settings, **of_peers, device=args.device)
        results[name] = {"settings": settings, "rows": rows}
        parts.append(f"## {title}\n\n{benchmark.TEXT}\n\n{_settings(settings)}\n\n{benchmark.report(rows)}\n")
        print(f"\n{parts[-1]}", end="", flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "benchmarks.md").write_text("\n".join(parts))
        (args.output / "benchmarks.json").write_text(json.dumps(results, indent=2) + "\n")


def _head(results: dict[str, Any]) -> str:
    machine = results["environment"]
    busy = "busy" if machine["load"] > 0.5 else "idle"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "lightning", "pdd_lightning"))
    return (
        f"# Benchmarks\n\n`{results['command']}`: {machine['machine']}, {machine['cores']} cores, threads used:"
        f" {machine['threads']}; load {machine['load']} before the start ({busy}); {versions}.\n"
    )


def _settings(settings: dict[str, Any]) -> str:
    shown = {name: value for name, value in settings.items() if name != "methods"}
    default = "" if "width" in settings else "ConvNet-3 of width 128, images of 3x32x32; "
    return f"({default}{', '.join(f'{name} {value}' for name, value in shown.items())})"


if __name__ == "__main__":
    main(sys.argv[1:])
