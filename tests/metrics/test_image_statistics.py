import math

import pytest
import torch

from pdd_lightning.metrics.image_statistics import (
    centroid_silhouette,
    colorfulness,
    label_confidence,
    nearest_distance,
    spectral_bands,
    total_variation,
)


def checkerboard(size=8, channels=1):
    rows = torch.arange(size)
    return ((rows[:, None] + rows) % 2).float().expand(1, channels, size, size)


def wave(cycles, size=16):
    """A horizontal cosine of so many cycles per image, about 0.5."""
    columns = torch.cos(2 * math.pi * cycles * torch.arange(size, dtype=torch.float64) / size)
    return (0.5 + 0.5 * columns).float().expand(1, 1, size, size)


@pytest.mark.parametrize("images", [torch.full((2, 3, 4, 4), 0.3), torch.rand(2, 1, 4, 4), checkerboard(channels=3)])
def test_gray_images_have_no_color(images):
    assert colorfulness(images).tolist() == pytest.approx([0.0] * len(images), abs=1e-4)


def test_one_plain_color_counts_by_its_mean_only():
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert float(colorfulness(red)) == pytest.approx(0.3 * math.hypot(255, 127.5), rel=1e-6)


def test_half_red_and_half_green_by_hand():
    """Red less green is +-255 about 0, yellow less blue 127.5 throughout."""
    image = torch.zeros(1, 3, 2, 2)
    image[:, 0, 0] = image[:, 1, 1] = 1
    assert float(colorfulness(image)) == pytest.approx(255 + 0.3 * 127.5, rel=1e-6)


def test_each_image_has_a_colorfulness_of_its_own():
    images = torch.rand(3, 3, 4, 4)
    alone = torch.cat([colorfulness(image) for image in images.split(1)])
    torch.testing.assert_close(colorfulness(images), alone)


@pytest.mark.parametrize(
    ("images", "band"),
    [
        (checkerboard(), 2),
        (checkerboard(7), 2),
        (wave(2), 0),
        (wave(4), 1),
        (wave(4).transpose(2, 3), 1),
        (wave(7), 2),
    ],
)
def test_plain_waves_lie_in_one_band(images, band):
    expected = [0.0, 0.0, 0.0]
    expected[band] = 1.0
    tolerance = 0.05 if images.shape[-1] % 2 else 1e-5  # no whole number of cycles fits an odd side
    assert spectral_bands(images)[0].tolist() == pytest.approx(expected, abs=tolerance)


def test_power_is_shared_as_amplitudes_squared_over_channels():
    images = torch.cat([wave(1), 0.5 * wave(7), torch.zeros(1, 1, 16, 16)], 1)
    assert spectral_bands(images)[0].tolist() == pytest.approx([0.8, 0.0, 0.2], abs=1e-6)


def test_brightness_has_no_part_in_the_spectrum():
    torch.testing.assert_close(spectral_bands(wave(4) * 0.1), spectral_bands(wave(4) * 0.1 + 0.5))


def test_shares_add_up_to_one_but_for_constant_images():
    shares = spectral_bands(torch.cat([torch.rand(2, 3, 8, 8), torch.full((1, 3, 8, 8), 0.3)]))
    assert shares.sum(1).tolist() == pytest.approx([1, 1, 0], abs=1e-5)


def test_white_noise_fills_bands_by_their_area():
    shares = spectral_bands(torch.rand(400, 1, 16, 16)).mean(0)
    frequencies = torch.fft.fftfreq(16) * 2
    radius = (frequencies[:, None] ** 2 + frequencies**2).sqrt()
    area = torch.stack([(radius < 1 / 3).sum() - 1, ((radius >= 1 / 3) & (radius < 2 / 3)).sum()]) / 255
    torch.testing.assert_close(shares[:2], area, atol=0.01, rtol=0)


def test_constant_images_have_no_variation_and_checkerboards_the_largest():
    assert total_variation(torch.full((2, 3, 4, 4), 0.3)).tolist() == [0, 0]
    assert float(total_variation(checkerboard())) == 1


def test_a_step_counts_in_one_direction():
    """One of three pairs in each row differs by 0.6, none in the columns."""
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 0.6
    assert float(total_variation(image)) == pytest.approx(0.6 / 3 / 2)


def test_a_radius_between_two_bands_belongs_to_the_upper_one():
    assert spectral_bands(wave(4), edges=(0.5,))[0].tolist() == pytest.approx([0, 1], abs=1e-6)


CENTROIDS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 100.0]])


@pytest.mark.parametrize(
    ("point", "label", "expected"),
    [
        ([0.0, 0.0], 0, 1.0),
        ([2.0, 0.0], 0, 0.0),
        ([1.0, 0.0], 0, 2 / 3),
        ([1.0, 0.0], 1, -2 / 3),
        ([0.0, 0.0], 2, -1.0),
    ],
)
def test_silhouettes_by_hand(point, label, expected):
    value = centroid_silhouette(torch.tensor([point]), torch.tensor([label]), CENTROIDS)
    assert float(value) == pytest.approx(expected)


def test_classes_on_the_same_spot_are_not_told_apart():
    assert float(centroid_silhouette(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 2))) == 0


def test_silhouettes_are_those_of_scikit_learn_where_classes_are_points():
    """With each class in one spot, distances to centroids are distances to all members."""
    from sklearn.metrics import silhouette_samples

    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = silhouette_samples(CENTROIDS[labels].numpy(), labels.numpy())
    value = centroid_silhouette(CENTROIDS[labels], labels, CENTROIDS)
    assert value.tolist() == pytest.approx(expected.tolist())


def test_confidence_is_the_probability_of_the_label():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert label_confidence(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.75, 0.5])
    assert label_confidence(logits, torch.tensor([1, 1])).tolist() == pytest.approx([0.25, 0.5])


def test_the_nearest_of_the_same_class_counts_per_pixel():
    references = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 0.4, 0.9)])
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.8, 0.8, 0.4)])
    distances = nearest_distance(images, torch.tensor([0, 1, 0]), references, torch.tensor([0, 0, 1]))
    assert distances.tolist() == pytest.approx([0.4, 0.1, 0.0])


def test_a_class_without_references_is_infinitely_far():
    assert nearest_distance(torch.ones(1, 4), torch.tensor([2]), torch.ones(1, 4), torch.tensor([0])).isinf().all()
