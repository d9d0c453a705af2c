import pytest

from maxlm.config.cluster.exit_codes import Exit, judge


@pytest.mark.parametrize(
    ("codes", "meaning"),
    [
        ([0, 0, 0], Exit.DONE),
        ([75, 75], Exit.STOPPED),
        ([0, 75], Exit.STOPPED),
        ([1, 2, 137], Exit.MISTAKE),
        ([75, 1], Exit.FAILED),
        ([0, -9], Exit.FAILED),
        ([143], Exit.FAILED),
        ([0, 3], Exit.FAILED),
    ],
)
def test_codes_of_processes_have_one_meaning(codes, meaning):
    assert judge(codes) is meaning
