"""`pdd fit` by one process and by several, one thread each: what experts, iterations and transitions gain.

python -m benchmarks.processes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import table

CONFIGS = Path(__file__).parents[1] / "configs"
TEXT = """\
A stage of the recipe `digits_mtt` by `pdd fit`, with DDP on one machine; each process has one thread. Experts and
transitions are divided among the processes. In an iteration each process draws a segment of its own, so that it takes
as long, and is worth as many segments as there are processes: the column counts segments. Seconds are the lowest of the
repeats."""
COLUMNS = {
    "processes": "processes|d", "experts": "experts, s|.1f", "segments": "segments / s|.1f",
    "transition": "transition, s|.1f", "experts_gain": "experts, gain|.2f", "segments_gain": "segments, gain|.2f",
    "transition_gain": "transition, gain|.2f",
}  # fmt: skip


def measure(processes: list[int], repeats: int, device: str = "cpu", **settings: Any) -> list[dict[str, Any]]:
    """Return one row per number of processes.

    Args:
        processes: Numbers of processes, the first for comparison.
        repeats: Runs of each, in turn.
        device: cpu or cuda.
        settings: Options of `pdd fit`.
    """
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in processes}
    for _ in range(repeats):
        for count in processes:
            runs[count].append(_fit(count, device, settings))
    rows = []
    for count in processes:
        best = {part: min(run[part] for run in runs[count]) for part in ("experts", "distil", "transition")}
        segments = count * settings["stages.iterations"] / best["distil"]
        rows.append({"processes": count, **best, "segments": segments})
    first = rows[0]
    for row in rows:
        row["segments_gain"] = row["segments"] / first["segments"]
        row.update({f"{part}_gain": first[part] / row[part] for part in ("experts", "transition")})
    return rows


def _fit(processes: int, device: str, settings: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of the first stage's parts."""
    accelerator = "cpu" if device == "cpu" else "gpu"
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "config": CONFIGS / "recipe" / "digits_mtt.yaml", "stages.num_stages": 1, "evaluation.num_networks": 1,
            "trainer.accelerator": accelerator, "trainer.devices": processes, "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": folder, **settings,
        }  # fmt: skip
        if processes > 1:
            options["trainer.strategy"] = "ddp"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "pdd_lightning", "fit", *words]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        seconds: dict[str, float] = json.loads(Path(folder, "summary.json").read_text())["stages"][0]["seconds"]
    return seconds


def report(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    return table(COLUMNS, rows)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    print(report(measure(args.processes, args.repeats, args.device, **{"stages.iterations": args.iterations})))


if __name__ == "__main__":
    main()
