"""The tiny prepared text of the trainer's tests."""

from tests.train.conftest import tiny_data

__all__ = ["tiny_data"]
