import dataclasses
import os
import pathlib

import numpy as np
import pytest
from reasoning.text_cases import FULL, LARA_FULL, MemoryStore, thinking_tokenizer

from jaxvla.data.schema import TextSpec
from jaxvla.errors import DataError
from jaxvla.reasoning import lengths as lengths_module
from jaxvla.reasoning.batch import SplitText, TextBatches, inference_text
from jaxvla.reasoning.curriculum import Curriculum, CurriculumConfig
from jaxvla.reasoning.lengths import measure, open_lengths, text_specs
from jaxvla.reasoning.prompt import PromptBuilder, PromptConfig
from jaxvla.reasoning.record import Reasoning

REASONINGS = {
    (0, 0): FULL,
    (0, 2): Reasoning(move="move up " * 20),
    (0, 3): Reasoning(reason="never said without a slot by LaRA's rule " * 9),
    (1, 1): Reasoning(task="t " * 40, move="up"),
    (1, 7): Reasoning(move="never drawn " * 90),
    (2, 0): Reasoning(move="trajectory 2 is not used " * 90),
    (3, 0): dataclasses.replace(LARA_FULL, boxes=()),
    (3, 1): Reasoning(reason="so"),
}
USABLE = np.array([4, 3, 0, 2])
LANGUAGE = (("put it", "put it down on the table"), ("go",), ("a very long one that nobody draws " * 5,), ("lift",))


def drawn(usable):
    """The transitions that are drawn: the first of each trajectory."""
    return np.array([(i, t) for i, count in enumerate(usable) for t in range(count)])


@pytest.fixture(scope="module")
def tokenizer():
    return thinking_tokenizer()


@pytest.fixture
def split():
    return SplitText(tuple("abcd"), LANGUAGE, drawn(USABLE), np.arange(4), MemoryStore(REASONINGS))


def make(tokenizer, curriculum=None, **prompt):
    return PromptBuilder(tokenizer, PromptConfig(**prompt), (6,)), Curriculum(CurriculumConfig(**(curriculum or {})))


@pytest.mark.parametrize("chunk", [1, 4, 2048])
@pytest.mark.parametrize(
    "curriculum",
    [
        {},
        {"component_set": "lara"},
        {"component_set": "lara", "slots_for_missing": False},
        {"component_set": "lara", "slots_for_missing": False, "component_order": ("REASON", "BBOX")},
    ],
    ids=["ecot", "lara", "lara_rule", "lara_rule_reordered"],
)
def test_lengths_are_those_of_the_batches(tokenizer, split, curriculum, chunk, monkeypatch):
    monkeypatch.setattr(lengths_module, "_CHUNK", chunk)
    builder, stages = make(tokenizer, curriculum)
    lengths = measure(split, builder, stages)
    places = [(i, t) for i in range(4) for t in range(USABLE[i])]
    trajectory, step = (np.array(column) for column in zip(*places))
    first = np.array([split.instructions.index(LANGUAGE[i][-1]) for i in trajectory], np.int32)
    wide = tuple(TextSpec(300, stages.num_slots(k), 700) for k in range(len(stages.components) + 1))
    batches = TextBatches(builder, stages, split, wide)
    prefixes = []
    for stage, longest in enumerate(lengths.suffixes):
        text = batches.at_stage(stage)(0, trajectory, step, first, np.zeros((len(step), 16)))
        assert longest.length == max(text["suffix_stop"].max(), 2 + (stage > 0))
        if longest.name:
            i = text["suffix_stop"].argmax()
            assert longest.name == f"trajectory {'abcd'[trajectory[i]]!r} step {step[i]}"
        prefixes.append(300 - text["prefix_start"].min())
    asked = inference_text(builder, stages, ["put it down on the table"], "implicit", 1, wide[1])
    assert max(prefixes) <= lengths.prefix.length == 300 - asked["prefix_start"][0]
    assert lengths.prefix.name == "trajectory 'a'"


def test_sizes_are_multiples_of_eight_that_hold_every_split(tokenizer, split):
    builder, stages = make(tokenizer, {"schedule": ((0, 0), (9, 8))})
    lengths = measure(split, builder, stages)
    longer = {**REASONINGS, (3, 0): Reasoning(move="up and " * 100)}
    other = measure(
        SplitText(tuple("abcd"), (("go",),) * 4, drawn(USABLE), np.arange(4), MemoryStore(longer)), builder, stages
    )
    specs = text_specs([lengths, other], builder, stages)
    assert [spec.num_slots for spec in specs] == list(range(9))
    for stage, spec in enumerate(specs):
        needed = max(lengths.suffixes[stage].length, other.suffixes[stage].length)
        assert spec.suffix_length % 8 == spec.prefix_length % 8 == 0
        assert 0 <= spec.suffix_length - needed < 8
        assert 0 <= spec.prefix_length - lengths.prefix.length < 8
    assert other.suffixes[6].length > lengths.suffixes[6].length
    assert specs[8].suffix_length == 8


def test_mixed_stages_need_room_for_all_words(tokenizer, split):
    builder, stages = make(tokenizer, {"uniform_stage_probability": 0.1})
    specs = text_specs([measure(split, builder, stages)], builder, stages)
    assert {spec.suffix_length for spec in specs} == {specs[0].suffix_length}


@pytest.mark.parametrize("mixed", [0.0, 0.5])
def test_a_policy_that_never_reasons_pays_for_no_words(tokenizer, split, mixed):
    never = {"reasoning_dropout": 1.0, "schedule": ((0, 0), (9, 8)), "uniform_stage_probability": mixed}
    builder, stages = make(tokenizer, never)
    lengths = measure(split, builder, stages)
    specs = text_specs([lengths], builder, stages)
    assert {(spec.num_slots, spec.suffix_length) for spec in specs} == {(0, 8)}
    assert lengths.suffixes[0].length > 8
    made = TextBatches(builder, stages, split, specs)
    first = np.zeros(1, np.int64)
    for batches, step in ((made, 0), (made, 9), (made.at_stage(0), 0), (made.at_stage(8), 0)):
        text = batches(step, first, first, np.zeros(1, np.int32), np.full((1, 16), 0.999))
        assert (text["suffix"].shape, text["slots"].shape) == ((1, 8), (1, 0))
        assert (text["suffix_stop"].tolist(), text["stage"].tolist()) == ([2], [-1])
        assert not text["labels"].any()
        assert not text["truncated"].any()


def test_limits(tokenizer, split):
    builder, stages = make(tokenizer, {"schedule": ((0, 3),)}, max_suffix_length=1000)
    lengths = measure(split, builder, stages)
    longest, prefix = lengths.suffixes[3], lengths.prefix.length
    assert text_specs([lengths], builder, stages)[3].suffix_length < 1000, "a limit is no wish"
    tight = {"max_suffix_length": longest.length, "max_prefix_length": prefix}
    builder, _ = make(tokenizer, **tight)
    specs = text_specs([lengths], builder, stages)
    assert (specs[3].suffix_length, specs[3].prefix_length) == (longest.length, prefix)

    builder, _ = make(tokenizer, **(tight | {"max_suffix_length": longest.length - 1}))
    with pytest.raises(
        DataError,
        match=rf"{longest.name}: the suffix has {longest.length} tokens, over the limit of {longest.length - 1}: raise "
        r"config\.prompt\.max_suffix_length, or set config\.prompt\.on_overflow=truncate",
    ):
        text_specs([lengths], builder, stages)
    latents_alone = Curriculum(CurriculumConfig(schedule=((0, 8),)))
    assert text_specs([lengths], builder, latents_alone)[8].suffix_length == 8
    builder, _ = make(tokenizer, **(tight | {"max_prefix_length": prefix - 1}))
    with pytest.raises(DataError, match=f"trajectory 'a': the prefix has {prefix} tokens"):
        text_specs([lengths], builder, stages)

    builder, _ = make(tokenizer, max_suffix_length=20, max_prefix_length=prefix - 1, on_overflow="truncate")
    spec = text_specs([lengths], builder, stages)[3]
    assert spec == TextSpec(prefix - 1, 3, 20)
    cut = TextBatches(builder, stages, split, text_specs([lengths], builder, stages))
    text = cut(0, np.array([0]), np.array([0]), np.array([1], np.int32), np.zeros((1, 16)))
    assert text["truncated"].all()


def test_unlabelled_trajectories_are_named(tokenizer, split):
    builder, stages = make(tokenizer)
    unlabelled = SplitText(split.keys, (("go",), (), (), ("up",)), drawn(USABLE), split.episodes, split.store)
    with pytest.raises(DataError, match=r"trajectory 'b' has no instruction; .*skip_unlabeled=True"):
        measure(unlabelled, builder, stages)


def test_annotations_that_cannot_be_encoded_are_named(tokenizer, split):
    builder, stages = make(tokenizer)
    store = MemoryStore({**REASONINGS, (3, 1): Reasoning(task="fine", move="<|image_pad|>")})
    with pytest.raises(DataError, match=r"trajectory 'd' step 1: 'MOVE: .* holds '<\|image_pad\|>'"):
        measure(SplitText(split.keys, LANGUAGE, drawn(USABLE), split.episodes, store), builder, stages)


def test_data_without_annotations(tokenizer):
    builder, stages = make(tokenizer)
    lengths = measure(SplitText(tuple("abcd"), LANGUAGE, drawn(USABLE), np.full(4, -1), None), builder, stages)
    assert [longest.length for longest in lengths.suffixes] == [2] + [3] * 8


def test_lengths_are_kept_until_something_changes(tokenizer, split, tmp_path, monkeypatch):
    file = tmp_path / "out.tfrecord"
    file.write_bytes(b"data")
    measured = []
    monkeypatch.setattr(lengths_module, "measure", lambda *args: measured.append(args) or measure(*args))

    def opened(builder, stages, texts=split):
        before = len(measured)
        found = open_lengths(texts, builder, stages, [file], pathlib.Path(tmp_path))
        assert found == measure(texts, builder, stages)
        return len(measured) > before

    builder, stages = make(tokenizer)
    assert opened(builder, stages)
    assert not opened(builder, stages)
    assert not opened(*make(tokenizer, {"schedule": ((0, 8),), "tag_dropout": 0.5}, max_suffix_length=9))
    assert opened(*make(tokenizer, base_prompt="Now."))
    assert opened(*make(tokenizer, {"component_set": "lara"}))
    assert opened(PromptBuilder(tokenizer.with_added_tokens(["<|more|>"]), PromptConfig(), (6,)), stages)
    assert opened(builder, stages, SplitText(split.keys, LANGUAGE, drawn(USABLE), np.array([1, 0, 2, 3]), split.store))
    assert opened(builder, stages, SplitText(split.keys, LANGUAGE, drawn(USABLE // 2), split.episodes, split.store))
    assert not opened(builder, stages)
    os.utime(file, ns=(1, 1))
    assert opened(builder, stages)
