"""What is attacked."""

from tests.cli.conftest import image_folder, recipe, run

__all__ = ["image_folder", "recipe", "run"]
