"""When so many blocks are set aside that the cause is not in the blocks."""

import pytest

from kasthuri_ray.segmentation.block_failures import SetAsideBlock
from kasthuri_ray.segmentation.phase_tally import PhaseTally


def make_tally(num_done, num_set_aside, known_bad=False):
    tally = PhaseTally()
    for _ in range(num_done):
        tally.note_done()
    for block in range(num_set_aside):
        tally.note_set_aside(SetAsideBlock(block, "no", ""), known_bad)
    return tally


@pytest.mark.parametrize(
    ("num_done", "num_set_aside", "num_tried", "all_tried", "expected"),
    [
        (0, 3, 8, False, True),  # none was done
        (0, 3, 7, False, False),  # too few were tried
        (0, 3, 3, True, True),  # there are no more
        (0, 2, 9, False, False),
        (1, 3, 9, False, False),
        (4, 10, 20, False, True),  # more than twice as many as were done
        (5, 10, 20, False, False),
        (999, 50, 2000, False, True),  # in a row
        (999, 49, 2000, False, False),
    ],
)
def test_too_many_blocks_set_aside_look_like_a_bug(num_done, num_set_aside, num_tried, all_tried, expected):
    assert make_tally(num_done, num_set_aside).looks_like_a_bug(num_tried, all_tried) is expected


def test_blocks_that_an_earlier_run_set_aside_are_no_sign():
    tally = make_tally(0, 60, known_bad=True)
    assert len(tally.set_aside) == 60
    assert not tally.looks_like_a_bug(99, True)


def test_the_error_names_the_first_block():
    error = make_tally(1, 10).bug_error()
    assert str(error).startswith("10 blocks were set aside and 1 was done, so the cause is probably not in the blocks.")
    assert str(error).endswith("The first, 0: no")
