import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from pdd_lightning.errors import ConfigError, DamagedFileError
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.experts.trajectory_store import delete_folders

SETTINGS = {"network": {"class_path": "Net", "init_args": {"width": 8}}, "training": {"lr": 0.01, "milestones": ()}}
RECORD = {
    "losses": [1.5, 0.5],
    "accuracies": [0.25, 0.75],
    "start_accuracy": 0.3,
    "end_accuracy": 0.6,
    "start_seconds": 0.0,
    "record_seconds": 2.5,
}


def snapshots(expert):
    """Three snapshots of seven parameters."""
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(expert))


def opened(folder, number=3, **changes):
    return TrajectoryStore(folder, number, {**SETTINGS, **changes})


def write(store, *experts):
    for expert in experts:
        store.write(expert, snapshots(expert), **{**RECORD, "start_accuracy": expert / 10})


@pytest.fixture
def folder(tmp_path):
    """Three experts, sealed."""
    store = opened(tmp_path / "experts")
    write(store, 0, 1, 2)
    assert store.missing() == []
    store.seal()
    return store.folder


def flip_byte(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_everything_written_is_read_back(folder):
    store = opened(folder)
    assert store.missing() == [] and store.damaged() == []
    assert [record.start_accuracy for record in store.records] == [0.0, 0.1, 0.2]
    assert (store.records[1].losses, store.records[1].accuracies) == (RECORD["losses"], RECORD["accuracies"])
    assert (store.records[1].end_accuracy, store.records[1].record_seconds) == (0.6, 2.5)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 2), (2, 0), (1, 1)])
def test_a_segment_is_the_exact_rows(folder, first, last):
    for expert in range(3):
        start, target = opened(folder).segment(expert, first, last)
        assert start.shape == target.shape == (7,)
        assert torch.equal(start, snapshots(expert)[first]) and torch.equal(target, snapshots(expert)[last])


def test_changing_a_segment_does_not_change_the_file(folder):
    store = opened(folder)
    store.segment(0, 0, 1)[0].zero_()
    assert torch.equal(store.segment(0, 0, 1)[0], snapshots(0)[0])
    assert opened(folder).damaged() == []


def test_the_files_are_plain_safetensors_beside_one_manifest(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"expert_00{number}.safetensors" for number in range(3)), "manifest.json"]
    assert torch.equal(load_file(folder / "expert_002.safetensors")["snapshots"], snapshots(2))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["experts"]] == names[:3]


def test_other_settings_are_refused_and_named(folder):
    with pytest.raises(ConfigError) as caught:
        opened(folder, number=4, training={"lr": 0.02, "milestones": ()}, seed=1)
    text = str(caught.value)
    assert str(folder) in text
    assert "training.lr: 0.01 on disk, 0.02 asked for" in text
    assert "number: 3 on disk, 4 asked for" in text
    assert "seed: None on disk, 1 asked for" in text
    assert "network" not in text and "milestones" not in text


def test_the_order_of_settings_and_tuples_do_not_count(folder):
    assert TrajectoryStore(folder, 3, dict(reversed(SETTINGS.items()))).missing() == []


@pytest.mark.parametrize("sealed", [True, False])
def test_a_truncated_or_altered_file_is_found(tmp_path, sealed):
    store = opened(tmp_path, number=5)
    write(store, *range(5))
    if sealed:
        store.missing()
        store.seal()
    store.file(1).write_bytes(store.file(1).read_bytes()[:-1])
    flip_byte(store.file(2))
    flip_byte(store.file(3), 20)
    assert opened(tmp_path, number=5).damaged() == [1, 2, 3]


@pytest.mark.parametrize("sealed", [True, False])
def test_an_expert_whose_file_is_deleted_is_missing_and_the_others_stay(tmp_path, sealed):
    store = opened(tmp_path)
    write(store, 0, 1, 2)
    store.missing()
    if sealed:
        store.seal()
    store.file(1).unlink()
    again = opened(tmp_path)
    assert again.missing() == [1] and again.damaged() == []
    assert torch.equal(again.segment(2, 0, 1)[1], snapshots(2)[1])
    write(again, 1)
    assert again.missing() == []
    again.seal()
    assert [record.start_accuracy for record in opened(tmp_path).records] == [0.0, 0.1, 0.2]


def test_an_interrupted_recording_is_continued(tmp_path):
    write(opened(tmp_path), 0, 2)
    store = opened(tmp_path)
    assert store.missing() == [1] and store.damaged() == []
    assert torch.equal(store.segment(2, 1, 2)[0], snapshots(2)[1])
    write(store, 1)
    assert store.missing() == []


def test_an_expert_whose_record_was_not_reached_is_missing(tmp_path):
    store = opened(tmp_path)
    write(store, 0, 1, 2)
    (tmp_path / "expert_001.json").unlink()
    assert opened(tmp_path).missing() == [1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"settings": {}}', b'{"settings": null}'])
def test_a_damaged_manifest_is_refused(folder, content):
    manifest = folder / "manifest.json"
    if content == b'{"settings": {}}':  # the settings that are asked for, but no list of experts
        content = json.dumps({"settings": json.loads(manifest.read_text())["settings"]}).encode()
    manifest.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"manifest\.json is damaged: .* delete the folder"):
        opened(folder)


def test_a_manifest_with_an_incomplete_record_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["experts"][1]["losses"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFileError, match=r"manifest\.json is damaged"):
        opened(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sha256": "00"}'])
def test_a_damaged_record_is_refused(tmp_path, content):
    write(opened(tmp_path), 0, 1)
    (tmp_path / "expert_001.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"expert_001\.json is damaged: .* delete it to record"):
        opened(tmp_path)
    (tmp_path / "expert_001.json").unlink()
    assert opened(tmp_path).missing() == [1, 2]


def test_a_folder_is_opened_with_the_settings_it_has(folder):
    store = TrajectoryStore.existing(folder)
    assert (store.number, store.settings) == (3, opened(folder).settings)
    hashes = [hashlib.sha256(store.file(expert).read_bytes()).hexdigest() for expert in range(3)]
    assert list(store.checksums().items()) == list(enumerate(hashes))


def test_what_is_no_folder_of_experts_is_not_opened(folder, tmp_path):
    with pytest.raises(ConfigError, match="empty holds no expert trajectories"):
        TrajectoryStore.existing(tmp_path / "empty")
    manifest = folder / "manifest.json"
    for settings in ([], {}, {"number": "three"}):
        manifest.write_text(json.dumps({"settings": settings, "experts": []}))
        with pytest.raises(DamagedFileError, match=r"manifest\.json is damaged: settings"):
            TrajectoryStore.existing(folder)


def test_sealing_twice_changes_nothing(folder):
    """As where the first time was interrupted."""
    before = (folder / "manifest.json").read_bytes()
    opened(folder).seal()
    assert (folder / "manifest.json").read_bytes() == before


def test_files_without_a_manifest_are_not_taken_for_ones_own(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedFileError, match=r"has expert files but no manifest\.json"):
        opened(folder)


def test_folders_that_match_are_deleted_but_for_one(tmp_path):
    """With those whose deletion was interrupted before."""
    for name in ("theta_1", "theta_1_pool_1", "theta_1_pool_2", "deleted_theta_1_pool_0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    delete_folders(tmp_path, "theta_*_pool_*", kept=tmp_path / "theta_1_pool_2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theta_1", "theta_1_pool_2"]
