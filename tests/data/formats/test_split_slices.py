"""Slices of splits: what TFDS 4.9.10 gives for a split whose shards have 4, 3 and 4 episodes."""

import pytest

from jaxvla.data.formats.split_slices import SplitSlice
from jaxvla.errors import ConfigError

LENGTHS = [4, 3, 4]


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("train", 0, 11),
        ("train[:95%]", 0, 10),
        ("train[95%:]", 10, 11),
        ("train[:5]", 0, 5),
        ("train[-3:]", 8, 11),
        ("train[10%:45%]", 1, 5),
        ("train[-50%:]", 5, 11),  # 5.5 rounds to 6, the even number
        ("train[:50%]", 0, 6),
        ("train[:5%]", 0, 1),
        ("train[33.3%:]", 4, 11),
        ("train[1_0:]", 10, 11),
        ("train[:1shard]", 0, 4),
        ("train[1shard]", 4, 7),
        ("train[-1shard]", 7, 11),
        ("train[:-1shard]", 0, 7),
    ],
)
def test_slices_are_those_of_tfds(text, start, stop):
    assert SplitSlice.parse(text, "x").range(LENGTHS, "y") == range(start, stop)


@pytest.mark.parametrize("total", [1, 7, 25, 53192])
def test_two_parts_make_the_whole(total):
    one, two = (SplitSlice.parse(f"train[{part}]", "x") for part in (":50%", "50%:"))
    if total > 1:
        assert one.range([total], "y").stop == two.range([total], "y").start


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"^o='' is no split: write train, train\[:95%\]"),
        ("train+val", "is no split: write"),
        ("train[", "is no split: write"),
        ("train[:]", "a slice has one or two bounds of one unit"),
        ("train[:x]", "a slice has one or two bounds"),
        ("train[5]", "a slice has one or two bounds"),
        ("train[5%:3]", "a slice has one or two bounds of one unit"),
        ("train[1:2:3]", "a slice has one or two bounds"),
        ("train[:1.5]", "a slice has one or two bounds"),
        ("train[-200%:]", "percents go from -100 to 100"),
    ],
)
def test_what_is_no_slice_is_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        SplitSlice.parse(text, "o")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("train[:12]", r"^here: train\[:12\] is more than the split's 11 episodes"),
        ("train[-12:]", r"train\[-12:\] is more than"),
        ("train[5:5]", r"train\[5:5\] is no episode of the split's 11"),
        ("train[:4%]", r"train\[:4%\] is no episode"),
    ],
)
def test_parts_that_are_not_there_are_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        SplitSlice.parse(text, "o").range(LENGTHS, "here")
