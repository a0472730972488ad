"""Output buffers: slots for frames, lending, and the budget for slow readers."""

from __future__ import annotations

import pytest

from metalmesh.hbone.buffers import (
    BUFFER_BYTES,
    CHUNK_BYTES,
    KEEP_BUFFERS,
    Budget,
    BufferPool,
    OutBuffer,
)


@pytest.mark.parametrize("frame_bytes", [16384, 65536])
@pytest.mark.parametrize("total", [1, 16383, 16384, 16385, 100_000, CHUNK_BYTES, CHUNK_BYTES * 2])
def test_slots_leave_room_for_headers(frame_bytes: int, total: int) -> None:
    """Payload bytes in order, 9 bytes free before each frame, never beyond the buffer."""
    buffer = OutBuffer()
    slots = buffer.slots(frame_bytes, total)
    assert sum(map(len, slots)) == min(total, CHUNK_BYTES)
    position = 0
    for slot in slots:
        slot[:] = b"x" * len(slot)
        position += 9
        assert buffer.data[position - 9 : position] == bytes(9)
        assert buffer.data[position : position + len(slot)] == slot
        position += len(slot)
    assert position <= BUFFER_BYTES


def test_slots_follow_the_frame_size() -> None:
    buffer = OutBuffer()
    assert len(buffer.slots(16384, CHUNK_BYTES)) == CHUNK_BYTES // 16384
    assert len(buffer.slots(32768, CHUNK_BYTES)) == CHUNK_BYTES // 32768


def test_pool_lends_again_what_was_given_back() -> None:
    pool = BufferPool()
    first = pool.take()
    assert pool.take() is not first
    pool.give(first)
    assert pool.take() is first


def test_pool_keeps_few() -> None:
    """A burst of writers must not leave its buffers behind for ever."""
    pool = BufferPool()
    buffers = [pool.take() for _ in range(KEEP_BUFFERS * 3)]
    for buffer in buffers:
        pool.give(buffer)
    again = {id(pool.take()) for _ in range(KEEP_BUFFERS * 3)}
    assert len(again & {id(buffer) for buffer in buffers}) == KEEP_BUFFERS


def test_budget_holds_back_hogs_only() -> None:
    budget = Budget(limit=100, fair=10)
    budget.used = 100
    assert not budget.withholds(90)
    budget.used = 101
    assert budget.withholds(90)
    assert not budget.withholds(10)
