"""Batch composition and the thread stages."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernible.pipeline.convert.composer import BatchComposer
from discernible.pipeline.convert.stages import Channel, Stages

sizes = st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 80), st.integers(1, 80))), max_size=60)


@given(sizes, st.integers(1, 8000), st.integers(1, 20))
def test_every_image_is_in_one_batch_of_its_padded_size(
    images: list[tuple[int, int] | None], batch_pixels: int, lookahead: int
) -> None:
    composer: BatchComposer[int] = BatchComposer(block=16, batch_pixels=batch_pixels, lookahead=lookahead)
    batches: list[list[int]] = []
    for index, size in enumerate(images):
        new = list(composer.skip(index) if size is None else composer.add(index, index, *size))
        batches += new
        emitted = {each for batch in batches for each in batch}
        for older in range(max(0, index - lookahead + 1)):
            assert images[older] is None or older in emitted
    batches += list(composer.finish())
    assert sorted(each for batch in batches for each in batch) == [i for i, size in enumerate(images) if size]
    for batch in batches:
        padded = {tuple(-(-side // 16) for side in images[each] or ()) for each in batch}
        assert len(padded) == 1
        ((rows, columns),) = padded
        assert len(batch) == 1 or len(batch) * rows * columns * 256 <= batch_pixels


def test_a_slow_consumer_holds_the_producer_back() -> None:
    produced = 0
    with Stages() as stages:
        channel: Channel[int] = stages.channel(3)

        def produce() -> None:
            nonlocal produced
            for number in range(20):
                channel.put(number)
                produced += 1
            channel.close()

        stages.run("producer", produce)
        time.sleep(0.1)
        assert produced == 3
        assert list(channel) == list(range(20))


@pytest.mark.parametrize("failing", ["producer", "consumer"])
def test_a_failing_stage_ends_the_others(failing: str) -> None:
    before = threading.active_count()

    def go() -> None:
        with Stages() as stages:
            channel: Channel[int] = stages.channel(1)

            def produce() -> None:
                for number in range(10):
                    if failing == "producer" and number == 3:
                        raise KeyError("from the producer")
                    channel.put(number)
                channel.close()

            stages.run("producer", produce)
            for number in channel:
                if failing == "consumer" and number == 3:
                    raise KeyError("from the consumer")

    with pytest.raises(KeyError, match=f"from the {failing}"):
        go()
    assert threading.active_count() == before
