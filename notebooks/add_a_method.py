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
# # Add a method
#
# A base method of dataset distillation says what one iteration compares. Everything else is the same for all of
# them: stages, frozen images, networks that were trained through the earlier stages, checkpoints, pictures,
# evaluation, several processes. So a new method is one file with a subclass of `DistillationStage`, and one
# YAML file that names it.
#
# The example is attention matching ([DataDAM, ICCV 2023](https://arxiv.org/abs/2310.00093)), which was not made
# for stages. Here it gets them without further work.

# %%
import contextlib
import io
import logging
import warnings
from pathlib import Path
from tempfile import mkdtemp

logging.disable(logging.INFO)  # what Lightning says about the machine
warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars need no widgets here

from IPython.display import Code, Image, display

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main

# %% [markdown]
# ## The file
#
# - `draw_batch` gives what one iteration works on. Anything random in it comes from the generator that it is given,
#   which belongs to this seed, stage, iteration and process: a continued run draws what the uninterrupted one would
#   have drawn. `self.data.kept` are the real examples that the stage uses.
# - `matching_loss` is the objective. `self.images` are the new images, the only ones that get an update;
#   `self.data.union` has those of earlier stages. Torch's own generator is seeded for it.
# - Every argument of the constructor is an attribute of the same name. They are stored with the images.
#
# `draw_start` gives a random network in stage 1, and a network trained through all earlier stages afterwards.

# %%
display(Code(filename="attention_matching.py"))

# %% [markdown]
# ## The recipe
#
# `class_path` names the class, wherever Python finds it; `init_args` are the arguments of its constructor. They
# are checked before anything runs, are options of the command line (`--model.power 2`), and are explained by
# `pdd fit --model.help attention_matching.AttentionMatching`.

# %%
display(Code(filename="attention_matching.yaml"))

# %% [markdown]
# ## The run
#
# In a shell, this is `pdd fit attention_matching.yaml`. Had it been stopped, `pdd resume` would continue it.

# %%
folder = Path(mkdtemp())
main(f"fit attention_matching.yaml --folder {folder} --trainer.enable_progress_bar false".split())

# %% [markdown]
# The union of the three stages, with the stage of each image:

# %%
display(Image(filename=folder / "images" / "union.png"))

# %% [markdown]
# ## Is it any good?
#
# Fresh networks, trained on the first stage, then the first two, then all three, beside as many random real
# images. Both are scored on the validation part; the test part is for when all choices have been made.

# %%
options = "--part val --num_networks 2 --epochs 40"
with contextlib.redirect_stderr(io.StringIO()):  # progress bars
    main(f"evaluate {folder} {options}".split())

# %% [markdown]
# The file holds everything that is needed to use the set elsewhere:

# %%
dataset = DistilledDataset(folder / "distilled.safetensors")
print(dataset.metadata["method"], dataset.metadata["settings"])

# %% [markdown]
# ## To keep it
#
# A method that is to stay lies in `pdd_lightning/stages/`, its pure loss in `pdd_lightning/objectives/`. The
# contract test (`tests/stages/test_contract.py`) finds it there by itself and checks what a stage promises:
# that only the new images change, that a stopped run continues to the same bits, that processes agree.
