# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inspect the stages of a distilled set
#
# What do later stages hold that earlier ones do not: in the pixels, in numbers, and in what networks learn from
# them? And which real images are the hard ones? This notebook opens a distilled set and looks.
#
# It makes the set itself, of scikit-learn's digits and with small settings (four stages of one image per class, four
# experts, few iterations), so that everything takes under a minute on one core of a CPU. To look at a run of your own,
# leave that cell out and let `folder` and `real` be its folder and its images.

# %%
import contextlib
import io
import logging
import warnings
from pathlib import Path
from tempfile import mkdtemp

logging.disable(logging.INFO)  # what Lightning says about the machine
warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars need no widgets here

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.data import Digits, ForgettingScores
from pdd_lightning.networks.spec import factory_from_spec

# %%
torch.set_num_threads(1)  # in networks this small, threads only wait for each other
plt.rcParams["figure.dpi"] = 60
folder = Path(mkdtemp())
options = "--stages.num_stages 4 --stages.iterations 40 --stages.experts.number 4 --stages.transition.epochs 60"
options += " --evaluation.num_networks 1 --evaluation.epochs 60 --trainer.enable_progress_bar false"
main(f"fit digits_mtt --folder {folder} {options}".split())

real = Digits(test_fraction=0.2, val_fraction=0.2)  # the same parts as in the recipe
real.setup()

# %% [markdown]
# ## Open it
#
# The file says how it was made.

# %%
dataset = DistilledDataset(folder / "distilled.safetensors")
stages = range(1, dataset.num_stages + 1)
about = dataset.metadata
print(f"{about['method']} on {about['dataset']['name']}, made by version {about['pdd_lightning_version']}")
print(f"network: {about['network']['class_path']} {about['network']['init_args']}")
for stage, lr in zip(stages, dataset.learning_rates, strict=True):
    print(f"stage {stage}: {int((dataset.stages == stage).sum())} images, learned rate {lr:.4f}")

# %% [markdown]
# ## Side by side, in true colors
#
# `to_pixels` undoes the normalization (or whitening). Each row is a stage, each column a class; the last row has
# the mean real image of each class.

# %%
train, val = real.train.images / 255, real.val.images / 255
pixels, labels = dataset.to_pixels(), dataset.labels


def show(axes: Axes, image: Tensor, title: str = "", color: str = "black") -> None:
    """Shows an image `[C, H, W]` in [0, 1], of one channel or three."""
    axes.imshow(image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0), interpolation="nearest")
    axes.set_title(title, fontsize=8, color=color, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def first_of(stage: int, label: int) -> int:
    """The place of a stage's first image of a class."""
    return int(((dataset.stages == stage) & (labels == label)).nonzero()[0])


classes = range(len(dataset.class_names))
figure, grid = plt.subplots(len(stages) + 1, len(classes), figsize=(9, 4.8), layout="constrained")
for label, column in zip(classes, grid.T, strict=True):
    for stage, axes in zip(stages, column, strict=False):
        show(axes, pixels[first_of(stage, label)], dataset.class_names[label] if stage == 1 else "")
    show(column[-1], train[real.train.labels == label].mean(0))
for name, axes in zip([*(f"stage {stage}" for stage in stages), "real mean"], grid[:, 0], strict=True):
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# ## Histograms of pixels
#
# Nothing keeps distilled pixels within black (0) and white (1): what lies outside is of use to networks, and is cut
# off in pictures.

# %%
levels = dataset.pixels.decode(dataset.images)
colors = plt.get_cmap("viridis")([0.85 * (stage - 1) / (len(stages) - 1) for stage in stages])
steps = torch.arange(int(16 * levels.min()) - 1, int(16 * levels.max()) + 3)  # digits have 16 steps of gray
bins = (steps - 0.5) / 16
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.hist(train.flatten(), bins, density=True, color="0.85", label="real")
for stage, color in zip(stages, colors, strict=True):
    values = levels[dataset.stages == stage].flatten()
    outside = 100 * ((values < 0) | (values > 1)).float().mean()
    label = f"stage {stage}: {outside:.0f} % outside"
    axes.hist(values, bins, density=True, histtype="step", linewidth=1.5, color=color, label=label)
for limit in (0, 1):
    axes.axvline(limit, color="0.4", linewidth=0.8, linestyle=":")
axes.set(xlabel="level of a pixel (0 black, 1 white)", ylabel="density, logarithmic", yscale="log")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## In numbers
#
# `pdd describe` measures each stage: shares of power in low, middle and high frequencies, total variation, what
# networks trained on real images make of the images, how clearly their features show the class (silhouette), and how
# far the nearest real image of the class is. The row `real, held out` is the measure to compare with. (Digits are
# gray: their colorfulness is 0.)

# %%
command = f"describe {folder} --num_networks 2"
command += f" --training.epochs 12 --training.batch_size 64 --figure {folder}/describe.png"
with contextlib.redirect_stderr(io.StringIO()):  # progress bars
    main(command.split())
display(Image.open(folder / "describe.png").reduce(2).quantize(64))

# %% [markdown]
# What to look for: confidence and silhouette that fall from stage to stage. First stages show what is typical of a
# class; later ones come nearer to the borders between classes. Differences of the size of the bars mean little: a
# stage has ten images here.

# %% [markdown]
# ## Nearest real images
#
# Does a stage merely copy real images? Below each distilled image is its nearest real training image of any class,
# with the distance (root mean square per pixel, in model space); red where that image is of another class. Distilled
# images begin as real ones, and not all have gone far. For comparison: how far real images that were held out are from
# their nearest training image.

# %%
flat_train = dataset.pixels.encode(train).flatten(1)


def nearest(images: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest training image, and its place, of each image `[N, C, H, W]` in model space."""
    distances = torch.cdist(images.flatten(1), flat_train) / flat_train.shape[1] ** 0.5
    return distances.min(1)


distances, places = nearest(dataset.images)
held_out = nearest(dataset.pixels.encode(val))[0]
figure, grid = plt.subplots(2 * len(stages), len(classes), figsize=(9, 8.5), layout="constrained")
for stage in stages:
    for label in classes:
        place = first_of(stage, label)
        above, below = grid[2 * stage - 2 : 2 * stage, label]
        same = real.train.labels[places[place]] == label
        show(above, pixels[place])
        show(below, train[places[place]], f"{distances[place]:.2f}", "black" if same else "tab:red")
    grid[2 * stage - 2, 0].set_ylabel(f"stage {stage}", rotation=0, ha="right", va="center")
    grid[2 * stage - 1, 0].set_ylabel("nearest", rotation=0, ha="right", va="center", color="0.5")
plt.show()
for stage in stages:
    print(f"stage {stage}: mean distance {distances[dataset.stages == stage].mean():.2f}")
print(f"real, held out: {held_out.mean():.2f} +-{held_out.std():.2f}")

# %% [markdown]
# ## What networks learn from each stage
#
# Fresh networks are trained on U_1, then U_2, and so on, with the rates that were learned. What do they get right after
# each union that they got wrong before? They are scored on the validation part: 287 images, about 29 of each class, so
# that one image is about 3 points.

# %%
make_network = factory_from_spec(dataset.metadata["network"])
val_images, val_labels = dataset.pixels.encode(val), real.val.labels
train_images, train_labels = dataset.pixels.encode(train), real.train.labels


def right_answers(seed: int, epochs: int = 60) -> tuple[Tensor, Tensor]:
    """Which validation and training images a network gets right after each union: bool `[stages, N]` of each."""
    torch.manual_seed(seed)
    network = make_network(dataset.images.shape[1], len(classes), dataset.images.shape[2])
    answers = []
    for stage, lr in zip(stages, dataset.learning_rates, strict=True):
        union, optimizer = dataset.union(stage), torch.optim.SGD(network.parameters(), lr=lr or 0.01, momentum=0.9)
        for _ in range(epochs):
            optimizer.zero_grad()
            cross_entropy(network(union.images), union.labels).backward()
            optimizer.step()
        with torch.no_grad():
            answers.append(
                (network(val_images).argmax(1) == val_labels, network(train_images).argmax(1) == train_labels)
            )
    return torch.stack([first for first, _ in answers]), torch.stack([second for _, second in answers])


networks = range(5)
val_right, train_right = (
    torch.stack(answers).float().mean(0)  # share of the networks `[stages, N]`
    for answers in zip(*(right_answers(seed) for seed in networks), strict=True)
)


# %%
def heat_map(axes: Axes, values: Tensor, names: list[str], cmap: str, limits: tuple[float, float], form: str) -> None:
    """Shows values `[rows, classes]` as colors and numbers."""
    picture = axes.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            dark = sum(picture.cmap(picture.norm(value))[:3]) < 1.4
            ink = "white" if dark else "black"
            axes.text(column, row, format(value, form), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(classes, dataset.class_names)
    axes.set_yticks(range(len(names)), names)
    axes.figure.colorbar(picture, ax=axes)


per_class = 100 * torch.stack([val_right[:, val_labels == label].mean(1) for label in classes], dim=1)
heights = (len(stages), len(stages) - 1)
figure, (above, below) = plt.subplots(2, 1, figsize=(8.5, 5), layout="constrained", height_ratios=heights)
heat_map(above, per_class, [f"U_{stage}" for stage in stages], "viridis", (50, 100), ".0f")
heat_map(below, per_class.diff(dim=0), [f"U_{s} less U_{s - 1}" for s in stages[1:]], "RdBu", (-20, 20), "+.0f")
above.set_title(f"validation accuracy per class, % (mean of {len(networks)} networks)", fontsize=10)
below.set_title("what a stage adds, in points", fontsize=10)
plt.show()

# %% [markdown]
# The validation images that gained most by each stage: above each image, how many of the networks were right before
# and after the stage. Some are also lost again: the counts below say how many.

# %%
figure, grid = plt.subplots(len(stages) - 1, 10, figsize=(9, 3.4), layout="constrained")
for stage, row in zip(stages[1:], grid, strict=True):
    before, after = (len(networks) * val_right[stage - 2 : stage]).round().int()
    gained = (after - before).argsort(descending=True, stable=True)
    for place, axes in zip(gained.tolist(), row, strict=False):
        show(axes, val[place], f"{dataset.class_names[val_labels[place]]}: {before[place]} to {after[place]}")
    row[0].set_ylabel(f"U_{stage - 1} to U_{stage}", rotation=0, ha="right", va="center")
    better, worse = int((after > before).sum()), int((after < before).sum())
    print(f"stage {stage}: {better} images are right in more networks than before, {worse} in fewer")
plt.show()

# %% [markdown]
# ## Easy and hard real images
#
# The forgetting score of a real training image is how often it was classified correctly and then wrongly again while
# networks were trained on the real images ([Toneva et al., ICLR 2019](https://arxiv.org/abs/1812.05159)), here on
# average over the experts of stage 1; "never" stands where none of them was ever right. `pdd fit` leaves the scores in
# the run folder; stages can use them to leave easy images out (`--stages.discard.keep`).

# %%
forgetting = ForgettingScores.load(folder / "forgetting.npz").of(real.train.indices)
ranking = forgetting.ranking()  # hardest first
print(f"{len(forgetting)} training images, forgotten {forgetting.scores.median():.2f} times (median)")
print(
    f"{int((forgetting.scores == 0).sum())} were never forgotten, {int(forgetting.scores.isinf().sum())} never learned"
)

ends = [("easiest", ranking.flip(0)), ("hardest", ranking)]
figure, grid = plt.subplots(4, len(classes), figsize=(9, 4.4), layout="constrained")
for (name, order), rows in zip(ends, (grid[:2], grid[2:]), strict=True):
    for label in classes:
        for place, axes in zip(order[train_labels[order] == label].tolist(), rows[:, label], strict=False):
            score = float(forgetting.scores[place])
            show(axes, train[place], "never" if score == torch.inf else f"{score:.2f}")
    for axes in rows[:, 0]:
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# Do the first stages teach what is easy? Real training images are grouped by the first union through which most
# networks get them right, and each group is compared with what experts, trained on these very images, had to do for
# them. (No network above was trained on them, but the distilled images were made from them.) The groups of later
# stages are small.

# %%
most = train_right > 0.5
first = torch.where(most.any(0), most.int().argmax(0), len(stages))
names = [*(f"U_{stage}" for stage in stages), "none"]
members = [first == number for number in range(len(names))]
errors = [float(forgetting.errors[member].mean()) if member.any() else 0.0 for member in members]

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.bar(range(len(names)), errors, color=[*colors, "0.6"], width=0.6)
axes.set_xticks(
    range(len(names)), [f"{name}\n{int(member.sum())}" for name, member in zip(names, members, strict=True)]
)
axes.set_xlabel("first right after this union, and number of images")
axes.set_ylabel("epochs with a wrong answer, mean")
axes.set_title("How hard the images were for experts", fontsize=10)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Where to go next
#
# - `pdd report runs/*` puts pictures, accuracy by stage and accuracy per class of any runs on one page.
# - `pdd study digits_stage_statistics --folder runs/statistics` has these numbers for several methods and seeds.
# - `--stages.discard.keep '[1.0,0.8,0.6,0.5]'` leaves easy images out of later stages, see `docs/stages.md`.
