"""`python -m convzoo`, and what torchrun starts."""

from convzoo.cli import run

run()
