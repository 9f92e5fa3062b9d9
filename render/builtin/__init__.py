"""The built-in model and the procedural photo studio that it was trained on."""

from pathlib import Path

NAME = "builtin"
WEIGHTS = Path(__file__).parent / "weights"
"""The model in diffusers' folder format."""
