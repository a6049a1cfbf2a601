"""The distance of characteristic functions is that of its formula, and has finite gradients everywhere."""

import pytest
import torch

from pdd_lightning.objectives import characteristic_distance


def draw(count, features=5, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_formula(synthetic, real, frequencies, alpha, beta):
    """Frequency by frequency, in complex numbers."""
    total = 0.0
    for frequency in frequencies:
        first, second = (torch.exp(1j * (side @ frequency)).mean() for side in (synthetic, real))
        amplitude = (first.abs() - second.abs()) ** 2
        phase = 2 * first.abs() * second.abs() * (1 - torch.cos(first.angle() - second.angle()))
        total = total + torch.sqrt(alpha * amplitude + beta * phase)
    return total / len(frequencies)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.2, 0.9)])
def test_it_is_the_sum_over_frequencies(alpha, beta):
    synthetic, real, frequencies = draw(4), draw(7, seed=1), draw(30, seed=2)
    distance = characteristic_distance(synthetic, real, frequencies, alpha, beta)
    torch.testing.assert_close(distance, by_formula(synthetic, real, frequencies, alpha, beta), rtol=1e-8, atol=1e-8)


def test_with_equal_weights_of_one_it_is_that_of_complex_numbers():
    synthetic, real, frequencies = draw(4), draw(7, seed=1), draw(30, seed=2)
    first, second = (torch.exp(1j * (side @ frequencies.T)).mean(0) for side in (synthetic, real))
    distance = characteristic_distance(synthetic, real, frequencies, 1.0, 1.0)
    torch.testing.assert_close(distance, (first - second).abs().mean(), rtol=1e-8, atol=1e-8)


def test_gradients_are_those_of_finite_differences():
    parts = [draw(3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *given: characteristic_distance(*given, 0.3, 0.7), parts)


def test_a_shift_changes_the_phase_alone_and_a_spread_the_amplitude():
    real, frequencies = draw(200, seed=1), draw(50, seed=2)
    amplitude, phase = ((1.0, 0.0), (0.0, 1.0))
    moved, wide = real + 0.3, real * 1.5
    assert characteristic_distance(moved, real, frequencies, *amplitude) < 1e-5
    assert characteristic_distance(moved, real, frequencies, *phase) > 0.05
    assert characteristic_distance(wide, real, frequencies, *amplitude) > 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["one image", "constant", "equal", "zero"])
def test_degenerate_sets_have_finite_gradients(case, dtype):
    real, frequencies = draw(6, seed=1).to(dtype), draw(20, seed=2).to(dtype)
    synthetic = {"one image": draw(1), "constant": torch.ones(4, 5), "equal": real, "zero": torch.zeros(2, 5)}[case]
    synthetic = synthetic.to(dtype).clone().requires_grad_()
    target = torch.ones(6, 5, dtype=dtype) if case == "constant" else real
    distance = characteristic_distance(synthetic, target, frequencies)
    distance.backward()
    assert distance.isfinite() and synthetic.grad.isfinite().all()
    assert (distance < 1e-3) == (case in ("equal", "constant"))


def test_opposite_points_cancel_to_an_amplitude_of_zero():
    synthetic = torch.tensor([[0.0], [torch.pi]]).requires_grad_()  # Phi(1) = (1 - 1) / 2
    distance = characteristic_distance(synthetic, torch.zeros(1, 1), torch.ones(1, 1), 1.0, 0.0)
    distance.backward()
    torch.testing.assert_close(distance, torch.tensor(1.0))
    assert synthetic.grad.isfinite().all()
