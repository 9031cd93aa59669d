"""The modulation of TI2V at its full size stays small: tensors are counted, not computed."""

from __future__ import annotations

import pytest

from benchmarks.ti2v_temb import ASKED, DIM, FRAMES, GRID, full_size


def test_a_row_a_frame_takes_a_fraction_of_the_memory_of_a_timestep_a_token() -> None:
    theirs, ours, two_rows = full_size().values()
    tokens = FRAMES * GRID[0] * GRID[1]
    assert tokens == 27_280
    assert theirs[0] == tokens * 7 * DIM * 4  # what a closed form says of (S, D) and (S, 6, D) in float32
    assert ours[0] == FRAMES * 7 * DIM * 4
    for held in range(3):
        assert theirs[held] / ours[held] > ASKED
    assert two_rows[2] == pytest.approx(theirs[2], rel=0.01)  # what an index costs in every block
