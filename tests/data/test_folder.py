import numpy as np
import pytest
from PIL import Image

from pdd_lightning.data import folder as folder_module
from pdd_lightning.data.folder import ImageFolder
from pdd_lightning.errors import ConfigError, DataError


def write_image(path, size=(8, 8), color=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of four training images and two test images; the color tells which image it is."""
    for label, name in enumerate(["cat", "dog"]):
        for i in range(4):
            write_image(tmp_path / "train" / name / f"{i}.png", color=(label, i, 7))
        for i in range(2):
            write_image(tmp_path / "test" / name / f"{i}.png", color=(label, i, 99))
    return tmp_path


def test_classes_files_and_indices_are_in_alphabetical_order(root):
    write_image(root / "train" / "cat" / "sub" / "x.PNG", color=(0, 4, 7))
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    train, test, names = ImageFolder(str(root)).load()
    assert names == ["cat", "dog"]
    assert train.labels.tolist() == [0] * 5 + [1] * 4
    assert train.images.shape == (9, 3, 8, 8) and train.images.is_contiguous()
    assert train.images[:, :, 0, 0].tolist() == [[0, i, 7] for i in range(5)] + [[1, i, 7] for i in range(4)]
    assert test.images[:, 2].unique().tolist() == [99]
    assert train.indices.tolist() == list(range(9))


def test_a_set_with_a_test_folder_holds_out_validation_alone(root):
    data = ImageFolder(str(root))
    data.setup()
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 4)
    assert data.name == root.name


@pytest.mark.parametrize("empty_folder", [True, False])
def test_without_test_images_some_are_held_out(root, empty_folder):
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    if not empty_folder:
        for path in [*(root / "test").iterdir(), root / "test"]:
            path.rmdir()
    data = ImageFolder(str(root), test_fraction=0.25)
    data.setup()
    parts = (data.train, data.val, data.test)
    assert [len(part) for part in parts] == [4, 2, 2]
    assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(8))


def test_images_are_scaled_by_the_shorter_side_and_cropped_at_the_center(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 6:18] = 200  # columns 8 to 15 are what remains
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(wide).save(tmp_path / "train" / name / f"{i}.png")
    data = ImageFolder(str(tmp_path), image_size=4)
    data.setup()
    assert data.image_shape == (3, 4, 4)
    assert data.test.images.unique().tolist() == [200]


def test_gray_images_become_rgb_unless_gray_is_asked_for(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            write_image(tmp_path / "train" / name / f"{i}.png", color=50, mode="L")
    color, gray = ImageFolder(str(tmp_path)), ImageFolder(str(tmp_path), grayscale=True)
    assert color.load()[0].images.shape == (6, 3, 8, 8)
    assert gray.load()[0].images.shape == (6, 1, 8, 8)
    assert gray.load()[0].images.unique().tolist() == [50]


def test_images_of_two_sizes_are_refused_naming_the_first(root):
    write_image(root / "train" / "cat" / "2.png", size=(8, 9))
    write_image(root / "train" / "dog" / "1.png", size=(9, 9))
    with pytest.raises(DataError, match=r"cat/2\.png is 8x9.*image_size"):
        ImageFolder(str(root)).load()
    assert ImageFolder(str(root), image_size=8).load()[0].images.shape == (8, 3, 8, 8)


def test_test_images_of_another_size_are_refused(root):
    for path in (root / "test").rglob("*.png"):
        write_image(path, size=(6, 6))
    with pytest.raises(DataError, match=r"test images.*image_size"):
        ImageFolder(str(root)).setup()


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(root, content):
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DataError, match=r"cannot read image .*dog/3\.png"):
        ImageFolder(str(root)).load()


def test_a_test_class_that_was_never_trained_is_refused(root):
    write_image(root / "test" / "bird" / "0.png")
    with pytest.raises(DataError, match="lacks: bird"):
        ImageFolder(str(root)).load()


def test_a_folder_of_another_layout_says_what_was_looked_for(tmp_path):
    write_image(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"/<class>/<image>, or .*train/<class>/<image>.*holds 0.png"):
        ImageFolder(str(tmp_path)).load()
    with pytest.raises(DataError, match="nowhere does not exist"):
        ImageFolder(str(tmp_path / "nowhere")).load()


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="none holds an image"):
        ImageFolder(str(tmp_path)).load()


def test_an_empty_class_is_named(root):
    (root / "train" / "eel").mkdir()
    with pytest.raises(DataError, match="'eel' has 0 image"):
        ImageFolder(str(root)).setup()


@pytest.mark.parametrize("options", [{"image_size": 0}, {"test_fraction": 1.0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ImageFolder("anywhere", **options)


@pytest.mark.parametrize(("threshold", "shown"), [(3, True), (100, False)])
def test_progress_is_shown_for_large_sets_alone(root, monkeypatch, capfd, threshold, shown):
    monkeypatch.setattr(folder_module, "_MIN_PROGRESS_IMAGES", threshold)
    ImageFolder(str(root)).load()
    assert ("Reading images" in capfd.readouterr().err) == shown


def test_classes_may_lie_in_the_folder_itself(root, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    for name in ("cat", "dog"):
        (root / "train" / name).rename(flat / name)
    train, test, names = ImageFolder(str(flat)).load()
    assert (names, test, train.labels.tolist()) == (["cat", "dog"], None, [0] * 4 + [1] * 4)


def test_a_part_of_the_training_images_of_each_class(root):
    train, test, _ = ImageFolder(str(root), max_per_class=2).load()
    assert train.images[:, :2, 0, 0].tolist() == [[0, 0], [0, 2], [1, 0], [1, 2]]
    assert len(test) == 4, "the test part is whole"
    assert len(ImageFolder(str(root), max_per_class=9).load()[0]) == 8
    with pytest.raises(ConfigError, match="max_per_class must be >= 1"):
        ImageFolder(str(root), max_per_class=0)
