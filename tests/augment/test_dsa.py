import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.autograd import gradcheck, gradgradcheck

from pdd_lightning.augment import DSA, DSADraw
from pdd_lightning.errors import ConfigError

OPERATIONS = ["color", "crop", "cutout", "flip", "scale", "rotate"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_twice_differentiable_in_the_images(operation, align_corners):
    dsa = DSA(operation, align_corners)
    draw = dsa.draw(2, (6, 5), seeded())
    images = torch.randn(2, 2, 6, 5, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    assert gradcheck(lambda x: dsa(x, draw), (images,))
    # The operations are linear in the images; the square has a second derivative for them to carry.
    assert gradgradcheck(lambda x: dsa(x, draw) ** 2, (images,))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_shared_draw_treats_every_image_of_any_batch_alike(operation):
    dsa = DSA(operation)
    draw = dsa.draw(4, (8, 8), seeded(), shared=True)
    image = torch.randn(1, 3, 8, 8, generator=seeded(1))
    single = dsa(image, draw)
    torch.testing.assert_close(dsa(image.expand(5, -1, -1, -1), draw), single.expand(5, -1, -1, -1))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_own_draw_differs_between_images(operation):
    dsa = DSA(operation)
    image = torch.randn(1, 3, 16, 16, generator=seeded(1)).expand(16, -1, -1, -1)
    augmented = dsa(image, dsa.draw(16, (16, 16), seeded()))
    assert not torch.allclose(augmented, augmented[:1].expand_as(augmented))


def test_every_operation_of_the_strategy_is_drawn_about_equally():
    dsa, generator = DSA(), seeded()
    drawn = [dsa.draw(2, (8, 8), generator).operation for _ in range(1200)]
    assert set(drawn) == set(OPERATIONS)
    assert all(140 < drawn.count(operation) < 260 for operation in OPERATIONS)


def test_draws_depend_on_the_generator_alone():
    first, second = (DSA().draw(4, (8, 8), seeded(3)) for _ in range(2))
    torch.manual_seed(1)
    assert first.operation == second.operation
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))


def test_ranges_of_the_drawn_numbers():
    down, right = DSA("crop").draw(4000, (32, 16), seeded()).parameters
    assert (int(down.min()), int(down.max())) == (-4, 4)
    assert (int(right.min()), int(right.max())) == (-2, 2)
    row, column = DSA("cutout").draw(4000, (32, 13), seeded()).parameters
    assert (int(row.min()), int(row.max())) == (0, 32)  # even side
    assert (int(column.min()), int(column.max())) == (0, 12)  # odd side


def test_crop_shifts_and_pads_with_zeros():
    images = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    draw = DSADraw("crop", (torch.tensor([1]), torch.tensor([-1])))
    expected = torch.tensor([[0.0, 4, 5], [0, 7, 8], [0, 0, 0]])
    assert torch.equal(DSA("crop")(images, draw)[0, 0], expected)


def test_cutout_is_clipped_at_the_border():
    draw = DSADraw("cutout", (torch.tensor([0]), torch.tensor([2])))
    expected = torch.ones(4, 4)
    expected[0, 1:3] = 0  # the square of side 2 has its upper row outside
    assert torch.equal(DSA("cutout")(torch.ones(1, 1, 4, 4), draw)[0, 0], expected)


@pytest.mark.parametrize("align_corners", [True, False])
def test_identity_parameters_leave_the_image(align_corners):
    images = torch.randn(2, 3, 7, 9, generator=seeded())
    unscaled = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    for operation, numbers in {
        "scale": (unscaled, unscaled),
        "rotate": (0.5,),
        "color": (0.5, 0.5, 0.5),
    }.items():
        draw = DSADraw(operation, tuple(torch.full((2,), number) for number in numbers))
        torch.testing.assert_close(DSA(operation, align_corners)(images, draw), images, rtol=1e-4, atol=1e-4)


def test_a_draw_moves_between_devices_like_any_batch():
    moved = move_data_to_device(DSA("scale").draw(2, (8, 8), seeded()), torch.device("meta"))
    assert isinstance(moved, DSADraw)
    assert moved.operation == "scale"
    assert [p.device.type for p in moved.parameters] == ["meta", "meta"]


def test_resampling_keeps_full_precision_under_autocast():
    images, dsa = torch.randn(2, 3, 32, 32, generator=seeded()), DSA("rotate")
    draw = dsa.draw(2, (32, 32), seeded())
    with torch.autocast("cpu", torch.bfloat16):
        autocast = dsa(images, draw)
    assert torch.equal(autocast, dsa(images, draw))


def test_strategy_none_is_the_identity_and_consumes_no_random_numbers():
    generator = seeded()
    draw = DSA("none").draw(2, (8, 8), generator)
    images = torch.randn(2, 3, 8, 8)
    assert DSA("none")(images, draw) is images
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_an_unknown_operation_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'blur'.*color, crop, cutout, flip, scale, rotate"):
        DSA("crop_blur")


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_resampling_works_under_function_transforms(operation):
    dsa = DSA(operation)
    draw = dsa.draw(2, (6, 6), seeded())
    images = torch.randn(3, 2, 1, 6, 6, generator=seeded(1))

    def energy(batch):
        return dsa(batch, draw).square().sum()

    together = torch.func.vmap(torch.func.grad(energy))(images)
    for batch, gradient in zip(images, together, strict=True):
        batch.requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(energy(batch), batch)[0])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("cutout_scale_color_crop_flip", [{"flip"}, {"color"}, {"scale", "crop"}, {"cutout"}]),
        ("color_crop_cutout", [{"color"}, {"crop"}, {"cutout"}]),
        ("flip_cutout", [{"flip"}, {"cutout"}]),
        ("scale_rotate", [{"scale", "rotate"}]),
        ("none", [{"none"}]),
    ],
)
def test_together_applies_all_that_always_are_and_one_of_the_others(strategy, expected):
    dsa, generator = DSA(strategy, together=True), seeded()
    seen = [set() for _ in expected]
    for _ in range(40):
        draw = dsa.draw(3, (8, 8), generator)
        steps = [draw, *draw.then]
        assert len(steps) == len(expected) and not any(step.then for step in draw.then)
        for names, step in zip(seen, steps, strict=True):
            names.add(step.operation)
    assert seen == expected


def test_together_is_one_operation_after_the_other():
    dsa, single = DSA("color_crop_cutout", together=True), DSA()
    images = torch.randn(3, 3, 8, 8, generator=seeded(1))
    draw = dsa.draw(3, (8, 8), seeded())
    expected = images
    for step in (draw, *draw.then):
        expected = single(expected, step._replace(then=()))
    assert torch.equal(dsa(images, draw), expected)
    assert bool((dsa(images, draw)[:, :, :, :] == 0).flatten(1).any(1).all())


def test_a_shared_draw_of_several_operations_suits_any_number_of_images():
    dsa = DSA("flip_color_crop_cutout", together=True)
    draw = dsa.draw(1, (8, 8), seeded(), shared=True)
    images = torch.randn(5, 3, 8, 8, generator=seeded(1))
    torch.testing.assert_close(dsa(images, draw)[:2], dsa(images[:2], draw))
    moved = move_data_to_device(draw, torch.device("cpu"))
    assert [step.operation for step in moved.then] == [step.operation for step in draw.then]
    torch.testing.assert_close(dsa(images, moved), dsa(images, draw))
