import concurrent.futures
import dataclasses
import pathlib
import pickle
import runpy

import numpy as np
import pytest
from data.bridge_files import write_dataset
from reasoning.text_cases import FULL, FULL_WORDS, LARA_FULL, LARA_WORDS, MemoryStore, thinking_tokenizer

from jaxvla.config import from_mapping
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.loader import TextSource, training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import TextSpec
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.batch import SplitText, TextBatches, inference_text
from jaxvla.reasoning.curriculum import Curriculum, CurriculumConfig
from jaxvla.reasoning.prompt import PromptBuilder, PromptConfig
from jaxvla.reasoning.record import Reasoning

S, E, END = "<|start_of_thinking|>", "<|end_of_thinking|>", "<|im_end|>\n"
HEAD = "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Say. "
CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"
KEYS = ("store.h5#0", "store.h5#1", "other#0")
LANGUAGE = (("put the pot down", "pot down"), ("Reach",), ())
DRAWN = np.array([(trajectory, step) for trajectory in (0, 1) for step in range(3)])


@pytest.fixture(scope="module")
def tokenizer():
    return thinking_tokenizer()


def split(reasoning=FULL):
    """Trajectory 0 has an annotated step 0, then one with a move only; trajectory 1 has none; 2 is unlabelled."""
    store = MemoryStore({(5, 0): reasoning, (5, 1): Reasoning(move="up"), (6, 0): reasoning})
    return SplitText(KEYS, LANGUAGE, DRAWN, np.array([5, -1, 6]), store)


def batches(tokenizer, reasoning=FULL, sizes=(40, 220), prompt=None, **curriculum):
    stages = Curriculum(CurriculumConfig(**curriculum))
    builder = PromptBuilder(tokenizer, PromptConfig(**({"base_prompt": "Say."} | (prompt or {}))), (2,))
    specs = tuple(TextSpec(sizes[0], stages.num_slots(k), sizes[1]) for k in range(len(stages.components) + 1))
    return TextBatches(builder, stages, split(reasoning), specs)


def draw(made, batch_index, trajectory, step, instruction, uniforms=None):
    rows = np.full((len(step), 16), 0.999) if uniforms is None else uniforms
    return made(batch_index, np.array(trajectory), np.array(step), np.array(instruction, np.int32), rows)


def expect(tokenizer, text, row, *, prefix, slots, suffix, learned, stage):
    """Checks every column of one sample; `learned` is the text of the labels."""
    before, after = tokenizer.encode(prefix), tokenizer.encode(suffix)
    p, s = text["prefix"].shape[1], text["suffix"].shape[1]
    pad = tokenizer.pad_id
    assert text["prefix"][row].tolist() == [pad] * (p - len(before)) + before.tolist()
    assert text["prefix_start"][row] == p - len(before)
    assert text["slots"][row].tolist() == [True] * slots + [False] * (text["slots"].shape[1] - slots)
    assert text["suffix"][row].tolist() == after.tolist() + [pad] * (s - len(after))
    assert text["suffix_stop"][row] == len(after)
    assert not text["labels"][row, len(after) :].any()
    assert tokenizer.decode(text["suffix"][row][text["labels"][row]]) == learned
    assert text["stage"][row] == stage
    assert not text["truncated"][row]


def test_layout_of_words(tokenizer):
    text = draw(batches(tokenizer), 0, [0, 0, 0, 1], [0, 1, 2, 0], [0, 1, 1, 2])
    words = " " + " ".join(FULL_WORDS)
    assert {key: (array.dtype.name, array.shape) for key, array in text.items()} == {
        "prefix": ("int32", (4, 40)),
        "prefix_start": ("int32", (4,)),
        "slots": ("bool", (4, 0)),
        "suffix": ("int32", (4, 220)),
        "suffix_stop": ("int32", (4,)),
        "labels": ("bool", (4, 220)),
        "stage": ("int32", (4,)),
        "truncated": ("bool", (4,)),
    }
    put, pot = f"{HEAD}put the pot down. @", f"{HEAD}pot down. @"
    learned = f"{words}<|im_end|>"
    expect(tokenizer, text, 0, prefix=put, slots=0, suffix=words + END, learned=learned, stage=0)
    up = " MOVE: up"
    expect(tokenizer, text, 1, prefix=pot, slots=0, suffix=up + END, learned=f"{up}<|im_end|>", stage=0)
    expect(tokenizer, text, 2, prefix=f"{HEAD}pot down", slots=0, suffix=END, learned="", stage=-1)
    expect(tokenizer, text, 3, prefix=f"{HEAD}reach", slots=0, suffix=END, learned="", stage=-1)


def test_layout_of_slots_and_words(tokenizer):
    made = batches(tokenizer, schedule=((0, 0), (10, 6)), tag2think_count={"PLAN": 2})
    text = draw(made, 10, [0, 0, 1], [0, 1, 0], [0, 0, 2])
    assert text["slots"].shape == (3, 7)
    prefix, words = f"{HEAD}put the pot down. @ {S}", f"{E} {FULL_WORDS[6]} {FULL_WORDS[7]}"
    expect(tokenizer, text, 0, prefix=prefix, slots=7, suffix=words + END, learned=f"{words}<|im_end|>", stage=6)
    words = f"{E} MOVE: up"
    expect(tokenizer, text, 1, prefix=prefix, slots=7, suffix=words + END, learned=f"{words}<|im_end|>", stage=6)
    # Nobody said that there are no words, so the end of the turn is not learned.
    expect(tokenizer, text, 2, prefix=f"{HEAD}reach. @ {S}", slots=7, suffix=E + END, learned=E, stage=6)
    assert draw(made, 9, [0], [0], [0])["slots"].shape == (1, 0)


def test_layout_of_latents_alone(tokenizer):
    text = draw(batches(tokenizer, schedule=((0, 8),)), 3, [0, 1], [0, 2], [0, 2])
    for row, instruction in enumerate(("put the pot down", "reach")):
        prefix = f"{HEAD}{instruction}. @ {S}"
        expect(tokenizer, text, row, prefix=prefix, slots=8, suffix=E + END, learned=E, stage=8)


def test_layout_of_lara_with_ragged_slots(tokenizer):
    made = batches(tokenizer, LARA_FULL, component_set="lara", slots_for_missing=False, schedule=((0, 2),))
    store = MemoryStore({(5, 0): LARA_FULL, (5, 1): Reasoning(reason="up"), (5, 2): Reasoning()})
    made = dataclasses.replace(made, split=dataclasses.replace(made.split, store=store))
    text = draw(made, 0, [0, 0, 0, 1], [0, 1, 2, 0], [0, 0, 0, 2])
    assert text["slots"].shape == (4, 2)
    prefix, words = f"{HEAD}put the pot down. @ {S}", f"{E} {LARA_WORDS[2]}"
    expect(tokenizer, text, 0, prefix=prefix, slots=2, suffix=words + END, learned=f"{words}<|im_end|>", stage=2)
    words = f"{E} Reasoning: up"
    expect(tokenizer, text, 1, prefix=prefix, slots=1, suffix=words + END, learned=f"{words}<|im_end|>", stage=2)
    # Without any annotation the whole image is the box, which has a slot.
    expect(tokenizer, text, 2, prefix=prefix, slots=1, suffix=E + END, learned=E, stage=2)
    expect(tokenizer, text, 3, prefix=f"{HEAD}reach. @ {S}", slots=1, suffix=E + END, learned=E, stage=2)


def test_layout_of_lara_without_slots(tokenizer):
    """The delimiter stands before words that may be none, and without the slot of a later stage there is neither."""
    made = batches(tokenizer, LARA_FULL, component_set="lara", slots_for_missing=False, schedule=((0, 0), (1, 1)))
    store = MemoryStore({(5, 0): Reasoning(reason="up")})
    made = dataclasses.replace(made, split=dataclasses.replace(made.split, store=store))
    text = draw(made, 0, [0, 1], [0, 0], [0, 2])
    words, put = " Reasoning: up", f"{HEAD}put the pot down. @"
    expect(tokenizer, text, 0, prefix=put, slots=0, suffix=words + END, learned=f"{words}<|im_end|>", stage=0)
    expect(tokenizer, text, 1, prefix=f"{HEAD}reach. @", slots=0, suffix=END, learned="", stage=0)
    text = draw(made, 1, [0, 1], [0, 0], [0, 2])
    expect(tokenizer, text, 0, prefix=f"{HEAD}put the pot down", slots=0, suffix=END, learned="", stage=-1)
    expect(tokenizer, text, 1, prefix=f"{HEAD}reach", slots=0, suffix=END, learned="", stage=-1)


@pytest.mark.parametrize(
    ("stage", "ending", "slots", "said"),
    [
        (0, ". @", 0, f" {' '.join(LARA_WORDS)}"),
        (1, f". @ {S}", 1, f"{E} {' '.join(LARA_WORDS[1:])}"),
        (2, f". @ {S}", 2, f"{E} {LARA_WORDS[2]}"),
        (3, f". @ {S}", 3, E),
    ],
)
def test_the_preset_of_lara_words_as_lara_does(tokenizer, stage, ending, slots, said):
    preset = runpy.run_path(str(CONFIGS))["get_config"]("ecot_lara").to_dict()
    stages = Curriculum(from_mapping(CurriculumConfig, preset["curriculum"], "config.curriculum"))
    builder = PromptBuilder(tokenizer, from_mapping(PromptConfig, preset["prompt"], "config.prompt"), (2,))
    specs = tuple(TextSpec(90, stages.num_slots(k), 80) for k in range(4))
    text = draw(TextBatches(builder, stages, split(LARA_FULL), specs).at_stage(stage), 0, [0, 1], [0, 0], [0, 2])
    for row, instruction in enumerate(("put the pot down", "Reach")):
        before = tokenizer.decode(text["prefix"][row, text["prefix_start"][row] :])
        if row == 0:
            assert before.endswith(f"<|vision_end|>{preset['prompt']['base_prompt']} {instruction}{ending}")
            assert text["slots"][row].sum() == slots
            assert tokenizer.decode(text["suffix"][row, : text["suffix_stop"][row]]) == said + END
        else:  # nothing is annotated; the whole image is the box, which is thought from stage 2 on
            assert before.endswith(f"Instruction: {instruction}{('. @', '', f'. @ {S}', f'. @ {S}')[stage]}")
            assert text["slots"][row].sum() == (0, 0, 1, 1)[stage]


def test_words_without_slots_at_a_stage_with_slots(tokenizer):
    mixed = batches(tokenizer, schedule=((0, 2),), uniform_stage_probability=1.0)
    uniforms = np.full((2, 16), 0.1)
    uniforms[1, 1] = 0.9
    text = draw(mixed, 0, [0, 0], [0, 0], [1, 1], uniforms)
    words, rest = " " + " ".join(FULL_WORDS), f"{E} {' '.join(FULL_WORDS[2:])}"
    prefix = f"{HEAD}pot down. @"
    expect(tokenizer, text, 0, prefix=prefix, slots=0, suffix=words + END, learned=f"{words}<|im_end|>", stage=0)
    prefix += f" {S}"
    expect(tokenizer, text, 1, prefix=prefix, slots=2, suffix=rest + END, learned=f"{rest}<|im_end|>", stage=2)


def test_dropped_reasoning_at_a_stage_with_slots(tokenizer):
    uniforms = np.full((2, 16), 0.6)
    uniforms[0, 0] = 0.4
    made = batches(tokenizer, schedule=((0, 3),), reasoning_dropout=0.5)
    text = draw(made, 0, [0, 0], [0, 0], [0, 0], uniforms)
    expect(tokenizer, text, 0, prefix=f"{HEAD}put the pot down", slots=0, suffix=END, learned="", stage=-1)
    assert text["slots"].tolist() == [[False] * 3, [True] * 3]


def test_texts_that_are_too_long_are_named(tokenizer):
    full = draw(batches(tokenizer), 0, [0], [0], [0])
    prefix, suffix = 40 - int(full["prefix_start"][0]), int(full["suffix_stop"][0])
    draw(batches(tokenizer, sizes=(prefix, suffix)), 0, [0], [0], [0])
    with pytest.raises(
        DataError,
        match=rf"trajectory 'store.h5#0' step 0: the prefix has {prefix} tokens, over the limit of {prefix - 1}: "
        r"raise config\.prompt\.max_prefix_length, or set config\.prompt\.on_overflow=truncate",
    ):
        draw(batches(tokenizer, sizes=(prefix - 1, suffix)), 0, [1, 0], [0, 0], [2, 0])
    with pytest.raises(DataError, match=rf"#0' step 0: the suffix has {suffix} tokens, over the limit of {suffix - 1}"):
        draw(batches(tokenizer, sizes=(prefix, suffix - 1)), 0, [1, 0], [0, 0], [2, 0])


def test_truncation_is_counted(tokenizer):
    full = draw(batches(tokenizer, schedule=((0, 5),)), 0, [0, 1, 1], [0, 0, 0], [0, 2, 2])
    start, stop = full["prefix_start"][0], full["suffix_stop"][0]
    whole_prefix, whole = full["prefix"][0, start:], full["suffix"][0, :stop]
    p, s = len(whole_prefix) - 2, len(whole) - 5
    prompt = {"on_overflow": "truncate", "max_suffix_length": 64}
    made = batches(tokenizer, sizes=(p, s), prompt=prompt, schedule=((0, 5),))
    text = draw(made, 0, [0, 1, 1], [0, 0, 0], [0, 2, 2])
    assert text["truncated"].tolist() == [True, False, False]
    assert text["prefix_start"][0] == 0
    end = len(tokenizer.encode(f" @ {S}"))
    assert text["prefix"][0].tolist() == [*whole_prefix[: -end - 2], *whole_prefix[-end:]]
    assert tokenizer.decode(text["prefix"][0]).startswith(HEAD)
    assert text["suffix"][0].tolist() == [*whole[:-7], *whole[-2:]]
    assert text["labels"][0].tolist() == [True] * (s - 2) + [False] * 2, "words that were cut do not end"
    words_only = batches(tokenizer, sizes=(40, s), prompt=prompt, schedule=((0, 5),))
    assert draw(words_only, 0, [0, 1], [0, 0], [0, 2])["truncated"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("reasoning", "trajectory", "instruction", "message"),
    [
        (FULL, 2, -1, r"trajectory 'other#0' step 0 has no instruction; .* config\.data\.skip_unlabeled=True"),
        (Reasoning(task="a <|im_end|> b"), 0, 0, "trajectory 'store.h5#0' step 0: .* holds '<.im_end.>'"),
    ],
)
def test_bad_texts(tokenizer, reasoning, trajectory, instruction, message):
    with pytest.raises(DataError, match=message):
        draw(batches(tokenizer, reasoning), 0, [1, trajectory], [0, 0], [2, instruction])


def test_data_without_annotations(tokenizer):
    made = batches(tokenizer, schedule=((0, 0), (5, 1)))
    made = dataclasses.replace(made, split=SplitText(KEYS, LANGUAGE, DRAWN, np.full(3, -1), None))
    assert draw(made, 0, [0, 1], [0, 0], [0, 2])["stage"].tolist() == [-1, -1]
    assert draw(made, 5, [0, 1], [0, 0], [0, 2])["stage"].tolist() == [1, 1]


def test_validation_is_at_one_stage(tokenizer):
    made = batches(tokenizer, schedule=((0, 0), (10, 8)), tag_dropout=0.9, reasoning_dropout=0.9)
    fixed = made.at_stage(4)
    first = draw(fixed, 0, [0], [0], [0], np.zeros((1, 16)))
    second = draw(fixed, 99, [0], [0], [0], np.random.default_rng(0).random((1, 16)))
    assert first["slots"].shape == (1, 4)
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])


def test_batches_do_not_depend_on_threads_or_neighbours(tokenizer):
    made = batches(tokenizer, schedule=((0, 0), (4, 3)), tag_dropout=0.3, uniform_stage_probability=0.3)
    asked = []
    for i in range(12):
        rng = np.random.default_rng(i)
        trajectory = rng.integers(0, 2, 16)
        asked.append((i, trajectory, rng.integers(0, 3, 16), trajectory * 2, rng.random((16, 16))))
    expected = [made(*args) for args in asked]
    copy = pickle.loads(pickle.dumps(made))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda args: copy(*args), asked))
    for one, other, (i, *rows) in zip(expected, threaded, asked):
        alone = made(i, *(row[7:8] for row in rows))
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])
            np.testing.assert_array_equal(array[7:8], alone[key])


def test_loader_takes_texts(tmp_path, tokenizer):
    root = write_dataset(tmp_path, {"a": [5, 3], "b": [4]})
    dataset = open_dataset(SourceConfig("bridge_tfrecord", str(root), (("**",),)), DataConfig(), "train")
    store = MemoryStore({(i, t): Reasoning(move=f"{i} {t}") for i in range(3) for t in range(5)})
    drawn = np.stack(dataset.source.locate(dataset.drawable), 1)
    texts = SplitText(tuple(dataset.source.keys), tuple(dataset.source.language), drawn, np.arange(3), store)
    assert texts.instructions == dataset.annotations()
    made = dataclasses.replace(batches(tokenizer), split=texts)
    assert isinstance(made, TextSource)
    stream = training_batches(Mixture.of(dataset), 8, 0, ("observations", "language", "text"), text=made)
    batch = next(stream)
    stream.close()
    for i, pixel in enumerate(batch["observations"]["images0"][:, -1, 0, 0]):
        said = tokenizer.decode(batch["text"]["suffix"][i][batch["text"]["labels"][i]])
        assert said == f" MOVE: {pixel[0]} {pixel[1]}<|im_end|>"
        read = tokenizer.decode(batch["text"]["prefix"][i][batch["text"]["prefix_start"][i] :])
        assert read == f"{HEAD}{dataset.annotations()[batch['language'][i]]}. @"


@pytest.mark.parametrize(
    ("mode", "stage", "ending", "slots", "suffix", "own"),
    [
        ("implicit", 3, f". @ {S}", 4, E + END, 3),
        ("implicit", 8, f". @ {S}", 9, E + END, 8),
        ("explicit", 8, ". @", 0, "", 0),
        ("none", 8, "", 0, END, -1),
    ],
)
def test_texts_of_inference(tokenizer, mode, stage, ending, slots, suffix, own):
    made = batches(tokenizer, tag2think_count={"PLAN": 2})
    text = inference_text(made.builder, made.curriculum, ["Put the pot down", "go"], mode, stage, made.specs[stage])
    trained = set(draw(made, 0, [0], [0], [0]))
    assert set(text) == trained - {"labels"}
    assert text["slots"].shape == (2, slots)
    assert text["slots"].all()
    assert text["stage"].tolist() == [own] * 2
    assert not text["truncated"].any()
    for row, instruction in enumerate(("put the pot down", "go")):
        assert tokenizer.decode(text["prefix"][row, text["prefix_start"][row] :]) == f"{HEAD}{instruction}{ending}"
        assert (text["prefix"][row, : text["prefix_start"][row]] == tokenizer.pad_id).all()
        assert tokenizer.decode(text["suffix"][row]) == suffix
        assert text["suffix_stop"][row] == text["suffix"].shape[1]


def test_inference_reads_what_training_reads(tokenizer):
    made = batches(tokenizer, schedule=((0, 8),))
    trained = draw(made, 0, [0], [0], [0])
    asked = inference_text(made.builder, made.curriculum, ["Put the pot down"], "implicit", 8, made.specs[8])
    for key in ("prefix", "prefix_start", "slots", "suffix_stop", "stage"):
        np.testing.assert_array_equal(asked[key], trained[key])
    np.testing.assert_array_equal(asked["suffix"], trained["suffix"][:, :3])


def test_bad_inference(tokenizer):
    made = batches(tokenizer)
    ask = (made.builder, made.curriculum)
    with pytest.raises(ConfigError, match="no inference mode 'latent'; there are implicit, explicit, none"):
        inference_text(*ask, ["go"], "latent", 8, made.specs[8])
    with pytest.raises(ConfigError, match="stage 0 has none: use mode explicit"):
        inference_text(*ask, ["go"], "implicit", 0, made.specs[0])
    with pytest.raises(DataError, match="instruction 1 has no instruction"):
        inference_text(*ask, ["go", " "], "none", 0, made.specs[0])
    with pytest.raises(DataError, match=r"instruction 0: the prefix has .* tokens, over the limit of 40"):
        inference_text(*ask, ["go on " * 30], "none", 0, made.specs[0])
