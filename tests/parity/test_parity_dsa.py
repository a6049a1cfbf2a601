import pytest
import torch

from pdd_lightning.augment import DSA, DSADraw


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("color", "color"),
        ("crop", "crop"),
        ("cutout", "cutout"),
        ("flip", "flip"),
        ("scale", "scale"),
        ("rotate", "rotate"),
        ("scale_align_corners_false", "scale"),
        ("rotate_align_corners_false", "rotate"),
    ],
)
def test_operation(reference, name, draws):
    arrays = reference("dsa")
    keys = sorted(key for key in arrays if key.startswith(f"{draws}_draw_"))
    draw = DSADraw(draws, tuple(arrays[key].flatten() for key in keys))
    augmented = DSA(align_corners=not name.endswith("false"))(arrays["images"], draw)
    torch.testing.assert_close(augmented, arrays[name], rtol=1e-4, atol=1e-5)
