"""Training a network for some steps such that the result is differentiable in the training data."""

from pdd_lightning.unroll.forms import Form, choose_form, unroll
from pdd_lightning.unroll.problem import InnerProblem

__all__ = ["Form", "InnerProblem", "choose_form", "unroll"]
