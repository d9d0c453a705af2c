"""Attention's gradients against differences of the plain implementation, whatever it knows of
positions.
"""

from tests.models.differences import check_gradients
from tests.small_models import POSITIONS


def test_gradients_equal_differences_of_the_plain_implementation():
    """Of each parameter that scores are made of."""
    sizes = {"num_layers": 4, "pattern": POSITIONS, "num_heads": 4, "num_kv_heads": 2}
    of = lambda path: "/mixer/" in path and not path.endswith(("value", "out"))  # noqa: E731
    assert check_gradients(sizes, of) == 4 * 2 + 3
