"""Differentiable siamese augmentation (DSA)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.errors import ConfigError

_SHIFT_RATIO = 0.125
_CUTOUT_RATIO = 0.5
_FLIP_PROBABILITY = 0.5
_MAX_SCALE = 1.2
_MAX_ANGLE = math.radians(15)
# Operations that `together` always applies if the strategy lists them.
_ALWAYS = ("flip", "color", "cutout")
# Numbers drawn from U(0, 1) by each operation; the other operations draw a row and a column.
_UNIFORM_DRAWS = {"color": 3, "flip": 1, "scale": 2, "rotate": 1}


class DSADraw(NamedTuple):
    """Drawn augmentation, which can be applied repeatedly and to several batches.

    A named tuple is supported by Lightning's `move_data_to_device` and data loaders.

    Attributes:
        operation: Name of the operation, or `none`.
        parameters: Its random numbers, each `[batch_size]`, or `[1]` if all images share the draw.
        then: Operations that are applied after it, in order.
    """

    operation: str
    parameters: tuple[Tensor, ...]
    then: tuple[DSADraw, ...] = ()


class DSA:
    """Apply operations of a strategy to a batch of images: one, drawn uniformly, or most of them together.

    Drawing and applying are separate: the student steps of an unrolled loop are computed twice with the same
    draw, and matching methods apply a shared draw to real and synthetic images ("siamese").

    With u ~ U(0, 1) per image: `color` is brightness x + (u - 0.5), then saturation (x - m) * 2u + m with
    m the mean over channels, then contrast (x - m) * (u + 0.5) + m with m the mean of the image; `crop`
    shifts by up to 1/8 of the size, zero padded; `cutout` zeroes a square of half the size; `flip` mirrors
    with probability 0.5; `scale` zooms each axis by a factor of U(1/1.2, 1.2); `rotate` turns by up to 15
    degrees. The last two sample bilinearly, zero padded.

    Args:
        strategy: Names of operations joined by `_`, or `none`. Leave out `flip` for digits.
        align_corners: Whether `scale` and `rotate` align the outermost samples with the centers of the outermost
            pixels (trajectory matching) or with their outer edges (gradient and distribution matching).
        together: Apply `flip`, `color` and `cutout` whenever the strategy lists them, and one of its other
            operations: flip first, then color, then the drawn one, cutout last.

    Raises:
        ConfigError: The strategy names an unknown operation.

    Reference:
        Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, section
        3.2. Together: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML
        2022, appendix C.
    """

    def __init__(
        self,
        strategy: str = "color_crop_cutout_flip_scale_rotate",
        align_corners: bool = True,
        together: bool = False,
    ) -> None:
        self.strategy = strategy
        self.operations = () if strategy == "none" else tuple(strategy.split("_"))
        self.align_corners = align_corners
        self.together = together
        if unknown := [name for name in self.operations if name not in _OPERATIONS]:
            raise ConfigError(
                f"unknown operation {unknown[0]!r} in augmentation strategy {strategy!r}; "
                f"join some of {', '.join(_OPERATIONS)} by '_', or use 'none'"
            )

    def draw(
        self, batch_size: int, image_size: tuple[int, int], generator: torch.Generator, shared: bool = False
    ) -> DSADraw:
        """Draw an operation (or, together, several) for the batch, and parameters for each image.

        Args:
            batch_size: Number of images.
            image_size: Height and width in pixels.
            generator: Source of the random numbers, on whose device the draw is (a CPU generator is fastest).
            shared: Draw one set of parameters for all images, whatever their number.
        """
        if not self.operations:
            return DSADraw("none", ())
        count = 1 if shared else batch_size
        chosen = self._draw_together(generator) if self.together else [_draw_one(self.operations, generator)]
        draws = [_draw_parameters(operation, count, image_size, generator) for operation in chosen]
        return draws[0]._replace(then=tuple(draws[1:]))

    def _draw_together(self, generator: torch.Generator) -> list[str]:
        """Return the operations to apply, in order."""
        others = tuple(name for name in self.operations if name not in _ALWAYS)
        drawn = [_draw_one(others, generator)] if others else []
        listed = {name: [name] if name in self.operations else [] for name in _ALWAYS}
        return [*listed["flip"], *listed["color"], *drawn, *listed["cutout"]]

    def __call__(self, images: Tensor, draw: DSADraw) -> Tensor:
        """Return the augmented images `[N, C, H, W]`; differentiable."""
        for step in (draw, *draw.then):
            images = self._apply(images, step)
        return images

    def _apply(self, images: Tensor, draw: DSADraw) -> Tensor:
        if draw.operation == "none":
            return images
        parameters = [
            p.to(images if p.is_floating_point() else images.device).view(-1, 1, 1, 1) for p in draw.parameters
        ]
        if draw.operation in _RESAMPLING:
            return _resample(images, _RESAMPLING[draw.operation](*parameters), self.align_corners)
        return _POINTWISE[draw.operation](images, *parameters)


def _draw_one(operations: tuple[str, ...], generator: torch.Generator) -> str:
    choice = torch.randint(len(operations), (), generator=generator, device=generator.device)
    return operations[int(choice)]


def _draw_parameters(operation: str, count: int, image_size: tuple[int, int], generator: torch.Generator) -> DSADraw:
    """Draw `count` sets of an operation's parameters."""
    device = generator.device
    if operation in _UNIFORM_DRAWS:
        uniforms = torch.rand(_UNIFORM_DRAWS[operation], count, generator=generator, device=device)
        return DSADraw(operation, tuple(uniforms))
    bounds = _shift_bounds if operation == "crop" else _cutout_bounds
    ranges = [bounds(size) for size in image_size]
    return DSADraw(operation, tuple(torch.randint(*r, (count,), generator=generator, device=device) for r in ranges))


def _shift_bounds(size: int) -> tuple[int, int]:
    """Return the smallest shift in pixels and the largest plus one."""
    shift = int(size * _SHIFT_RATIO + 0.5)
    return -shift, shift + 1


def _cutout_bounds(size: int) -> tuple[int, int]:
    """Return the smallest center in pixels and the largest plus one."""
    side = int(size * _CUTOUT_RATIO + 0.5)
    return 0, size + 1 - side % 2


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = (images - gray) * (2 * saturation) + gray
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - level) * (contrast + 0.5) + level


def _crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) + down
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) + right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = index.flatten(2).expand(count, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images) * inside


def _cutout(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    sides = [int(size * _CUTOUT_RATIO + 0.5) for size in images.shape[2:]]
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1) - row + sides[0] // 2
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1) - column + sides[1] // 2
    removed = (rows >= 0) & (rows < sides[0]) & (columns >= 0) & (columns < sides[1])
    return images * ~removed


def _flip(images: Tensor, uniform: Tensor) -> Tensor:
    return torch.where(uniform < _FLIP_PROBABILITY, images.flip(3), images)


_Matrix = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _scale(uniform_x: Tensor, uniform_y: Tensor) -> _Matrix:
    lowest, zero = 1 / _MAX_SCALE, torch.zeros_like(uniform_x)
    x, y = (lowest + uniform * (_MAX_SCALE - lowest) for uniform in (uniform_x, uniform_y))
    return (x, zero), (zero, y)


def _rotate(uniform: Tensor) -> _Matrix:
    angle = (2 * uniform - 1) * _MAX_ANGLE
    return (angle.cos(), -angle.sin()), (angle.sin(), angle.cos())


def _resample(images: Tensor, matrix: _Matrix, align_corners: bool) -> Tensor:
    """Sample each image `[C, H, W]` at pixel coordinates from -1 to 1 that are transformed by its 2x2 matrix.

    Autocast would run a matrix product in half precision.
    """
    y, x = (_coordinates(size, images, align_corners) for size in images.shape[2:])
    x, y = x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)
    grid = torch.stack([a * x + b * y for a, b in matrix], dim=-1).squeeze(1)
    grid = grid.expand(len(images), -1, -1, -1)
    sampled: Tensor = _Sample.apply(images, grid, align_corners, False)
    return sampled


class _Sample(torch.autograd.Function):
    """`grid_sample` or its adjoint, differentiable in the images any number of times, unlike in older torch versions.

    Sampling is linear in the images: its derivative is the adjoint, whose derivative is sampling.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, grid: Tensor, align_corners: bool, adjoint: bool) -> Tensor:
        if not adjoint:
            return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
        bilinear = zero_padding = 0
        gradient: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            images, torch.zeros_like(images), grid, bilinear, zero_padding, align_corners, [True, False]
        )[0]
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.align_corners, ctx.adjoint = inputs[2:]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        return _Sample.apply(cotangent, ctx.saved_tensors[0], ctx.align_corners, not ctx.adjoint), None, None, None


def _coordinates(size: int, like: Tensor, align_corners: bool) -> Tensor:
    """Return the centers of `size` pixels between -1 and 1."""
    edge = 1.0 if align_corners else 1 - 1 / size
    return torch.linspace(-edge, edge, size, dtype=like.dtype, device=like.device)


_POINTWISE: dict[str, Callable[..., Tensor]] = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip}
_RESAMPLING: dict[str, Callable[..., _Matrix]] = {"scale": _scale, "rotate": _rotate}
_OPERATIONS = (*_POINTWISE, *_RESAMPLING)
