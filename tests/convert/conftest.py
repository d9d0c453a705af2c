"""The fixtures of whole runs."""

from tests.train.conftest import refuse, tiny_data, write_run

__all__ = ["refuse", "tiny_data", "write_run"]
