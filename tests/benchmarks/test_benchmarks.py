"""Every benchmark runs in its smallest size, and notices when the two forms that it compares differ."""

import itertools
import json
from functools import partial

import pytest
import torch

from benchmarks import peers, pools
from benchmarks.__main__ import SECTIONS, SMALLEST, main
from benchmarks.cases import METHODS, Case, Iteration, check
from benchmarks.measure import flops, peak_bytes, peak_of, table

TINY = {"frequencies": 1, "classes": 3, "real_batch": 8, "syn_steps": 3, "size": 16, "depth": 2, "width": 4}


class Allocation:
    """Takes so many bytes for a moment in each iteration."""

    def __init__(self, size):
        self.size = size

    def __call__(self, form):
        assert form == "once"
        torch.ones(self.size, dtype=torch.uint8)


@pytest.fixture
def no_processes(monkeypatch):
    """Measures no memory: processes take longer to start than the rest takes to run."""
    for _, benchmark in SECTIONS.values():
        monkeypatch.setattr(benchmark, "peak_of", lambda *_: 0, raising=False)


@pytest.mark.parametrize(
    "sections", [["methods", "pools", "unroll"], pytest.param(list(SECTIONS), marks=pytest.mark.slow)]
)
def test_one_command_writes_the_whole_document(sections, no_processes, tmp_path, capsys):
    threads = str(torch.get_num_threads())
    main(["--size", "smallest", "--output", str(tmp_path), "--threads", threads, "--sections", *sections])
    document = (tmp_path / "benchmarks.md").read_text()
    assert document == capsys.readouterr().out
    titles = [line[3:] for line in document.splitlines() if line.startswith("## ")]
    assert titles == [SECTIONS[name][0] for name in sections]
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    rows = results["methods"]["rows"]
    measured = [(row["method"], row["stage"], row["form"]) for row in rows]
    assert measured == list(itertools.product(METHODS, SMALLEST["methods"]["stages"], ("ours", "plain")))
    assert all(row["seconds"] > 0 and row["to_floor"] > 0 for row in rows)
    assert results["environment"]["torch"] == torch.__version__
    if "peers" in sections:
        assert [row["code"] for row in results["peers"]["rows"]] == ["ours"]
        assert results["processes"]["rows"][0]["segments"] > 0


def test_a_process_that_fails_is_reported_with_its_message(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "CODES", {"official": peers.CODES["official"]})
    (tmp_path / "utils.py").write_text("raise RuntimeError('out of order')")
    with pytest.raises(SystemExit, match="out of order"):
        peers.measure(str(tmp_path), "", 1, ["transition, 5 epochs on 100 images"], width=4)


def test_memory_is_the_peak_of_a_process_of_its_own():
    before, peaks = peak_bytes("cpu"), [peak_of(partial(Allocation, size), "once", "cpu") for size in (1, 1 << 28)]
    assert (1 << 28) < peaks[1] - peaks[0] < (1 << 28) + (1 << 26)
    assert peak_bytes("cpu") - before < 1 << 26
    assert peak_of(partial(Allocation, 1 << 28), None, "cpu") < peaks[0] + (1 << 26)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_both_forms_agree(method, stage):
    check(Case(method, stage, **TINY))


def test_disagreement_stops_the_benchmark(monkeypatch):
    plain = METHODS["DM"].plain_loss
    monkeypatch.setitem(METHODS, "DM", METHODS["DM"]._replace(plain_loss=lambda *given: plain(*given) * (1 + 1e-7)))
    with pytest.raises(SystemExit, match=r"DM, stage 1: ours differs from the plain loop by 1\.0e-07"):
        check(Case("DM", **TINY))


@pytest.mark.parametrize("method", METHODS)
def test_ours_does_the_work_of_the_floor_and_plain_loops_do_more(method):
    """The first convolution needs no gradient by constant images, but is computed again in the backward pass."""
    iteration = Iteration(Case(method, 3, **{**TINY, "width": 32}))
    floor = iteration.floor_passes * iteration.pass_flops
    iteration("ours")  # the first one also chooses the form of the inner loop
    ours, plain = (flops(lambda form=form: iteration(form)) / floor for form in ("ours", "plain"))
    assert 0.8 < ours < 1.06
    assert plain > 1.09 * ours or (method == "MTT" and plain == pytest.approx(ours, rel=0.05))


def test_time_of_a_late_stage_of_idc_stays_within_one_and_a_half():
    """In counted operations, at the published number of images."""
    work = []
    for stage in (1, 5):
        iteration = Iteration(Case("IDC", stage, size=16, depth=2, width=8))
        work.append(flops(lambda iteration=iteration: iteration("ours")))
    assert work[1] < 1.5 * work[0]


def test_counts_of_pools_are_the_published_ones():
    """IDC: 4 unions of 80 to 320 decoded images, 200 epochs; a pool of 20 is trained on the last one alone."""
    figures = pools.extrapolate(pools.counts("IDC"), step=0.5, image=1e-3)
    assert figures["matching"] == pytest.approx(1000 * 0.5 + 200_000 * 1e-3)
    assert figures["scratch"] == pytest.approx(200 * (80 + 160 + 240 + 320) * 1e-3)
    assert figures["pool"] == pytest.approx(20 * 200 * 320 * 1e-3 / 2000)
    assert figures["renewed"] == pytest.approx(figures["pool"] + 9 * 20 * figures["scratch"] / 2000)
    assert [pools.counts(method).lives for method in ("IDC", "DSA", "DM")] == [2000, 640, 20000]


def test_tables_are_markdown_with_empty_cells_where_nothing_is_known():
    rows = [{"name": "a", "value": 1.25}, {"name": "b"}]
    assert table({"name": "what|", "value": "s|.1f"}, rows) == "| what | s |\n|---|---|\n| a | 1.2 |\n| b |  |"
