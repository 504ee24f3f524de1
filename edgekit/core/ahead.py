"""Work done in threads ahead of whoever takes its results, never further than memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    prepare: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """What ``work`` gives for each item, in their order; raises what it raises, at that item.

    What was not begun when the caller stops is not done.

    Args:
        ahead: items that are taken and worked on before the caller has asked for their results.
        prepare: called in each thread before its first item.
    """
    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
