import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.bridge_files import write_dataset
from models.qwen3_vl.cases import quick_jit

from jaxvla.agents import language
from jaxvla.agents.language import LanguageConfig, language_from_json, open_language
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import NO_TOKEN
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, DataError, WeightsError
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.qwen3_vl.config import PRESETS
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.weights import load_hf, save_hf

TASKS = {"Put it in": [3, 3], "lift the red cube up and hold it above the long table": [3]}
TEXTS = tuple(text for task in TASKS for text in (task, f"{task} again"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), TASKS)


@pytest.fixture
def split(root, tmp_path):
    """A copy of its own, where nothing is kept yet."""
    shutil.copytree(root, tmp_path / "data")
    return open_split(tmp_path / "data")


def open_split(folder, split="train"):
    source = SourceConfig("bridge_tfrecord", str(folder), include=(("**",),))
    return Mixture.of(open_dataset(source, DataConfig(), split))


def kept(split):
    return sorted(pathlib.Path(split.paths[0]).parent.glob("instructions-*.npy"))


def check_rows(table, split, expected):
    """Every annotation has the row that is expected for its text; gives the row of no annotation."""
    annotations = split.annotations()
    assert set(annotations) == set(TEXTS)
    found = table.take(np.arange(len(annotations)))
    for row, text in zip(found, annotations):
        if text in expected:
            np.testing.assert_allclose(row, expected[text], rtol=1e-4, atol=1e-5)
    assert len(table.values_ml) == len(TEXTS) + 1, "each text is there once"
    return table.take(np.array([-1]))[0]


def never(*_):
    raise AssertionError("encoded again")


def test_learned_ids_are_those_of_the_tokenizer(split):
    own = open_language(LanguageConfig(max_length=40), (split,))
    tokenizer = load_tokenizer(TINY)
    assert (own.spec.length, own.spec.vocab_size, own.spec.dtype) == (40, tokenizer.vocab_size, np.int32)
    rows = {text: tokenizer.encode(text.lower()) for text in TEXTS}
    expected = {text: np.pad(row, (0, 40 - len(row)), constant_values=NO_TOKEN) for text, row in rows.items()}
    table = own.table(split)
    assert (check_rows(table, split, expected) == NO_TOKEN).all()
    assert table.take(np.array([0])).dtype == np.int32
    np.testing.assert_array_equal(own.encode(["  put IT\n in"])[0], expected["Put it in"])


def test_tables_are_kept_and_mapped(split, monkeypatch):
    own = open_language(LanguageConfig(max_length=40), (split,))
    first = own.table(split)
    (path,) = kept(split)
    monkeypatch.setattr(language.TokenLanguage, "encode", never)
    again = own.table(split)
    assert isinstance(again.values_ml, np.memmap)
    assert not isinstance(again.take(np.arange(2)), np.memmap)
    np.testing.assert_array_equal(again.values_ml, first.values_ml)
    for other in (dataclasses.replace(own, max_length=41), dataclasses.replace(own, tokenizer=other_tokenizer())):
        with pytest.raises(AssertionError, match="encoded again"):
            other.table(split)
    assert kept(split) == [path], "nothing is left of what failed"
    assert not list(path.parent.glob(".instructions*"))


def other_tokenizer():
    return load_tokenizer(TINY).with_added_tokens(["<extra>"])


def test_instructions_that_are_too_long_are_named(split):
    own = open_language(LanguageConfig(max_length=12), (split,))
    longest = len(load_tokenizer(TINY).encode(TEXTS[3].lower()))
    with pytest.raises(
        DataError, match=rf"'lift .* again' has {longest} tokens.*config\.language\.max_length={longest}"
    ):
        own.table(split)


def test_a_checkpoint_holds_the_tokenizer(split):
    own = open_language(LanguageConfig(), (split,))
    back = language_from_json(json.loads(json.dumps(own.to_json())))
    assert back.spec == own.spec
    np.testing.assert_array_equal(back.encode(TEXTS), own.encode(TEXTS))


def test_lines_of_text_in_the_tokens_of_smolvlm2(samples):
    """The golden ids of whole instructions, and padded ones as LeRobot pads them."""
    own = open_language(LanguageConfig("tokens", str(samples / "tok_smolvlm"), 48, "truncate"), ())
    golden = json.loads((samples / "tok_smolvlm" / "DERIVED_golden_ids.json").read_text())
    assert (own.spec.length, own.spec.vocab_size) == (48, golden["len_with_added"])
    back = language_from_json(json.loads(json.dumps(own.to_json())))
    ids_of = {item["text"]: item["ids"] for item in golden["records"]}
    pairs = [(text, ids_of[f"{text}\n"]) for text in ids_of if f"{text}\n" in ids_of]
    assert len(pairs) > 3
    for text, ids in pairs:
        expected = np.pad(ids, (0, 48 - len(ids)), constant_values=NO_TOKEN)
        for made in (own, back):
            np.testing.assert_array_equal(made.encode([text, f"{text}\n"]), [expected, expected])
    for item in golden["padded_48"]:
        row = own.encode([item["text"]])[0]
        np.testing.assert_array_equal(row != NO_TOKEN, item["attention_mask"])
        np.testing.assert_array_equal(np.where(row == NO_TOKEN, 2, row), item["input_ids"])


def test_long_instructions_are_cut_where_one_says_so(split):
    own = open_language(LanguageConfig("tokens", max_length=12, on_overflow="truncate"), (split,))
    whole = load_tokenizer(TINY).encode(f"{TEXTS[3]}\n")
    assert len(whole) > 12
    np.testing.assert_array_equal(own.encode([TEXTS[3]])[0], whole[:12])
    with pytest.raises(DataError, match=rf"has {len(whole)} tokens, more than 12"):
        open_language(LanguageConfig("tokens", max_length=12), (split,)).encode([TEXTS[3]])
    named = open_language(LanguageConfig("tokens", TINY, max_length=12, on_overflow="truncate"), (split,))
    np.testing.assert_array_equal(named.encode([TEXTS[3]]), own.encode([TEXTS[3]]))
    with pytest.raises(ConfigError, match="on_overflow must be one of error, truncate, not 'cut'"):
        LanguageConfig(on_overflow="cut")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny Qwen3-VL with random weights, as a folder of Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    config, random = PRESETS["tiny"], np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(lambda rngs: Qwen3VL(config, rngs), jax.random.key(0)))
    params = jax.tree.map(lambda x: jnp.asarray(0.2 * random.standard_normal(x.shape), jnp.float32), shapes)
    save_hf(params, config, folder)
    load_tokenizer(TINY).save(folder)
    return folder


def decoder(folder, **changes):
    return LanguageConfig("qwen3_vl", str(folder), dtype="float32", prompt="Do this:", **changes)


@pytest.fixture(scope="module")
def one_at_a_time(weights):
    """The vectors of the shortest and the longest text from the model itself, without batches and padding."""
    config, tokenizer = PRESETS["tiny"], load_tokenizer(TINY)
    graph = graph_of(lambda rngs: Qwen3VL(config, rngs))
    forward = quick_jit(lambda params, ids: bind(graph, params).forward(ids[None])[0])
    params, prompt = load_hf(weights, config), tokenizer.encode("Do this:")
    vectors = {}
    for text in (TEXTS[0], TEXTS[-1]):
        states = np.asarray(forward(params, np.concatenate([prompt, tokenizer.encode(f" {text}")])))
        mean = states[len(prompt) :].mean(0)
        vectors[text] = mean / np.sqrt((mean**2).sum())
    return vectors


def test_decoder_vectors_do_not_depend_on_batch_and_padding(split, weights, one_at_a_time):
    own = open_language(decoder(weights), (split,))
    assert (own.spec.length, own.spec.vocab_size, own.spec.dtype) == (96, 0, np.float32)
    table = own.table(split)
    assert (check_rows(table, split, one_at_a_time) == 0).all()
    assert table.take(np.array([0])).dtype == np.float32
    np.testing.assert_allclose(own.encode(TEXTS[-1:])[0], one_at_a_time[TEXTS[-1]], rtol=1e-4, atol=1e-5)
    assert np.abs(np.subtract(*one_at_a_time.values())).max() > 0.01


def test_what_is_kept_needs_no_weights(split, weights, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(weights, folder)
    first = open_language(decoder(folder), (split,)).table(split)
    path = folder / "model.safetensors"
    stamp = path.stat()
    path.write_bytes(bytes(stamp.st_size))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = open_language(decoder(folder), (split,)).table(split)
    np.testing.assert_array_equal(again.values_ml, first.values_ml)
    os.utime(path)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_language(decoder(folder), (split,)).table(split)


def test_a_checkpoint_knows_where_the_weights_are(split, weights, one_at_a_time, tmp_path):
    own = open_language(decoder(weights), (split,))
    back = language_from_json(json.loads(json.dumps(own.to_json())))
    assert dataclasses.asdict(back) == dataclasses.asdict(own)
    np.testing.assert_allclose(back.encode(TEXTS[:1])[0], one_at_a_time[TEXTS[0]], rtol=1e-4, atol=1e-5)
    moved = dataclasses.replace(back, folder=str(tmp_path / "gone"))
    assert moved.spec == own.spec
    with pytest.raises(WeightsError, match="gone does not exist"):
        moved.encode(TEXTS)


VECTORS = np.random.default_rng(1).standard_normal((len(TEXTS) + 1, 5)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.npz"
    np.savez(path, texts=np.array(["unused", *TEXTS]), vectors=VECTORS)
    return path


def precomputed(path):
    return LanguageConfig("precomputed", str(path))


def test_vectors_of_a_file(split, file, monkeypatch):
    own = open_language(precomputed(file), (split,))
    table = own.table(split)
    np.testing.assert_array_equal(table.take(np.array([-1]))[0], np.zeros(5))
    rows = dict(zip(TEXTS, VECTORS[1:]))
    np.testing.assert_array_equal(table.take(np.arange(6)), [rows[text] for text in split.annotations()])
    assert not kept(split), "nothing was computed"
    back = language_from_json(json.loads(json.dumps(own.to_json())))
    np.testing.assert_array_equal(back.encode([TEXTS[2], "unused"]), VECTORS[[3, 0]])
    monkeypatch.setattr(language, "MAX_KEPT_TEXTS", 4)
    back = language_from_json(own.to_json())
    assert back.spec == own.spec
    with pytest.raises(DataError, match=r"'unused' has no vector among the 0 of .*give a policy the vector itself"):
        back.encode(["unused"])


def test_an_annotation_without_a_vector_is_named(split, tmp_path):
    path = tmp_path / "few.npz"
    np.savez(path, texts=np.array(TEXTS[:2]), vectors=VECTORS[:2])
    with pytest.raises(DataError, match=r"'lift .*' and 1 others have no vector among the 2 of .*few\.npz"):
        open_language(precomputed(path), (split,)).table(split)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"texts": np.array(["a"])}, "cannot be read.*vectors"),
        ({"texts": np.array(["a"]), "vectors": np.zeros((2, 3))}, r"holds texts <U1\[1\] and vectors float64\[2, 3\]"),
        ({"texts": np.array([b"a"]), "vectors": np.zeros((1, 3))}, r"not str\[m\] and float\[m, l\]"),
        ({"texts": np.array(["a", "a"]), "vectors": np.zeros((2, 3))}, "a text twice"),
        ({"texts": np.array(["a"]), "vectors": np.full((1, 3), np.inf)}, "not finite"),
        ({"texts": np.array(["a"], object), "vectors": np.zeros((1, 3))}, "cannot be read"),
    ],
)
def test_bad_files_are_one_line(split, tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        open_language(precomputed(tmp_path / "bad.npz"), (split,))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_data_without_vectors(split, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.npz cannot be read"):
        open_language(precomputed(tmp_path / "nothing.npz"), (split,))
    with pytest.raises(DataError, match=r"has no language vectors: set config\.language\.path"):
        open_language(LanguageConfig("precomputed"), (split,))


def test_vectors_of_real_data(bridge_rlds):
    source = SourceConfig("rlds", str(bridge_rlds), cameras={"images0": "image_0"}, image_size=(8, 8))
    splits = [Mixture.of(open_dataset(source, DataConfig(), split)) for split in ("train", "val")]
    own = open_language(LanguageConfig("precomputed"), splits)
    assert own.spec.length == 512
    for split in splits:
        texts = split.annotations()
        found = own.table(split).take(np.arange(len(texts)))
        np.testing.assert_allclose(found, split.datasets[0].source.vectors, atol=1e-6)
        np.testing.assert_array_equal(own.encode(texts[:3]), found[:3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": "muse"},
            "no language.encoder named 'muse'; there are: learned, tokens, openvla, openvla_v01",
        ),
        ({"path": "somewhere"}, "no effect with language.encoder 'learned'"),
        ({"encoder": "qwen3_vl"}, r"set --config\.language\.path to the folder"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        LanguageConfig(**changes)
    assert "\n" not in str(error.value)
