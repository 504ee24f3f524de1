"""Frames worked on side by side: in order, never more of them held than are worked on, errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from calibration.threads import AT_ONCE, side_by_side


def test_results_keep_the_order_of_their_items() -> None:
    second_done = threading.Event()
    at_once = min(AT_ONCE, torch.get_num_threads())

    def work(item: int) -> int:
        if item == 0 and at_once > 1:
            assert second_done.wait(60)
        if item == 1:
            second_done.set()
        return item * item

    assert list(side_by_side(work, range(7))) == [0, 1, 4, 9, 16, 25, 36]


def test_frames_are_taken_as_they_are_worked_on() -> None:
    taken = 0

    def frames() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for number, result in enumerate(side_by_side(lambda frame: frame, frames())):
        assert result == number
        assert taken <= number + AT_ONCE + 1


def test_an_error_reaches_the_caller_and_ends_the_work() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("frame 2")
        return item

    results = side_by_side(work, range(100))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="frame 2"):
        next(results)


def test_the_callers_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    list(side_by_side(lambda item: torch.ones(8).sum(), range(4)))
    assert torch.get_num_threads() == before
