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
# # Quickstart
#
# Dataset distillation turns a real image set into a tiny synthetic one on which networks learn nearly as much.
# *Progressive* distillation ([Chen et al., ICLR 2024](https://arxiv.org/abs/2310.06982)) makes it in stages, each of
# which continues where networks trained on all earlier stages stand. Networks are then trained on the first stage, on
# the first two, and so on: on a union that grows.
#
# This notebook goes from real images to such a set, and to networks trained on it, in under a minute on one core
# of a CPU. The settings are small for that: three stages of one image per class, four experts, few iterations.

# %%
import logging
import statistics
import warnings
from pathlib import Path
from tempfile import mkdtemp

logging.disable(logging.INFO)  # what Lightning says about the machine
warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars need no widgets here

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display
from tabulate import tabulate
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from pdd_lightning.data import Digits
from pdd_lightning.evaluation.baselines import random_set
from pdd_lightning.evaluation.subject import stored_subject
from pdd_lightning.networks import ConvNet

# %% [markdown]
# ## Distill
#
# The real images are scikit-learn's handwritten digits: 1,797 of 8x8 pixels, nothing to download. A recipe is a
# whole experiment in one YAML file; everything in it can be changed on the command line. In a shell, the line below is
# `pdd fit digits_mtt …`, and `pdd resume FOLDER` continues a run that was stopped.
#
# The method is trajectory matching: networks trained on real images (experts) leave their parameters after every
# epoch, and the synthetic images are made such that a few steps on them lead where epochs on real images led.

# %%
torch.set_num_threads(1)  # in networks this small, threads only wait for each other
folder = Path(mkdtemp())
options = "--stages.num_stages 3 --stages.iterations 60 --stages.experts.number 4 --stages.transition.epochs 60"
options += " --evaluation.num_networks 3 --evaluation.epochs 60 --trainer.enable_progress_bar false"
main(f"fit digits_mtt --folder {folder} {options}".split())

# %% [markdown]
# For each stage, the first table says how far the matching loss fell, the student's learning rate that was learned with
# the images, and the accuracy of the experts' own start points after the stage. The second table has fresh networks,
# trained on the finished set.
#
# ## Look
#
# The union of all stages, a row per class. Images start as real ones and end as what trains best, which need not
# look like a digit.

# %%
display(Image(filename=folder / "images" / "union.png"))

# %% [markdown]
# ## Use
#
# One file holds all that is needed: images, labels, stages, learning rates, and how to bring real images into the
# same space. `DistilledDataset` reads it, for any PyTorch script.

# %%
dataset = DistilledDataset(folder / "distilled.safetensors")
print(f"{len(dataset)} images of shape {list(dataset.images.shape[1:])} in {dataset.num_stages} stages")
print("learning rates:", ", ".join(f"{rate:.3f}" for rate in dataset.learning_rates))

# %% [markdown]
# Training is the usual loop, once for each union U_1, U_2, U_3. After each of them the network is scored on the
# validation part, 287 real images that the distillation saw only in the accuracies above. The test part stays
# unread: it is for when all choices have been made.

# %%
real = Digits(test_fraction=0.2, val_fraction=0.2)  # the same parts as in the recipe
real.setup()
val_images, val_labels = dataset.pixels.encode(real.val.images / 255), real.val.labels


def accuracies(staged: DistilledDataset, seed: int, epochs: int = 60) -> list[float]:
    """Trains a network progressively; its validation accuracy in % after each union."""
    torch.manual_seed(seed)
    network = ConvNet(in_channels=1, num_classes=10, image_size=8, depth=2, width=32)
    reached = []
    for stage, lr in enumerate(staged.learning_rates, 1):
        optimizer = torch.optim.SGD(network.parameters(), lr=lr or 0.01, momentum=0.9)
        for _ in range(epochs):
            for images, labels in DataLoader(staged.union(stage), batch_size=256, shuffle=True):
                optimizer.zero_grad()
                cross_entropy(network(images), labels).backward()
                optimizer.step()
        with torch.no_grad():
            right = network(val_images).argmax(1) == val_labels
        reached.append(100 * right.float().mean().item())
    return reached


# %% [markdown]
# Five networks on the distilled images, and five on as many random real ones, staged alike and drawn anew for each
# network. Network number n begins with the same parameters in both.


# %%
subject = stored_subject(folder / "distilled.safetensors", real)


def random_images(seed: int) -> DistilledDataset:
    """As many real images per class and stage as the distilled set has."""
    return DistilledDataset.of(random_set(subject, seed), dataset.pixels, dataset.class_names, {})


seeds = range(5)
results = {
    "distilled": [accuracies(dataset, seed) for seed in seeds],
    "random real": [accuracies(random_images(seed), seed) for seed in seeds],
}

# %%
counts = [len(dataset.union(stage)) for stage in range(1, dataset.num_stages + 1)]
rows = []
for name, networks in results.items():
    reached = [
        f"{statistics.fmean(stage):.1f} ± {statistics.stdev(stage):.1f}" for stage in zip(*networks, strict=True)
    ]
    rows.append([name, *reached])
print(tabulate(rows, ["validation accuracy %", *(f"{count} images" for count in counts)]))

# %%
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
for (name, networks), color in zip(results.items(), ("tab:blue", "tab:orange"), strict=True):
    axes.plot(counts, torch.tensor(networks).mean(0), color=color, label=f"{name}, mean of {len(seeds)} networks")
    for network in networks:
        axes.plot(counts, network, "o", color=color, alpha=0.4, markeredgewidth=0)
axes.set_xticks(counts, [f"U_{stage}\n{count} images" for stage, count in enumerate(counts, 1)])
axes.set_ylabel("validation accuracy, %")
axes.set_title("After each stage of progressive training; a dot is a network", fontsize=10)
axes.grid(color="0.9")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# What this shows and what not: one distilled set was made (one seed), with few iterations, and evaluated with five
# networks of the kind that it was made with, trained without augmentation. Random real images have no learned rate and
# were trained at 0.01; rates up to 0.1, or 200 epochs at 0.01 or 0.03, changed their accuracy by less than 3 points.
# Dots differ in initialization, and for random images also in the choice. The gap narrows with more images.
#
# ## Where to go next
#
# - The whole recipe, five stages in a few minutes, and the test part: `pdd fit digits_mtt`, then `pdd test
#   runs/digits_mtt`; figures in `docs/results/digits.md`.
# - Your own images: `docs/images.md`.
# - Other methods: `pdd recipes`, and `docs/methods.md`.
# - What stages contain and teach: `inspect_stages` beside this notebook. A method of your own: `add_a_method`.
# - Whether stages help at equal cost, and on which networks: `pdd study`, see `docs/studies.md`.
