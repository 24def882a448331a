import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

import jaxvla
from jaxvla.data.text.chat import render_chat
from jaxvla.data.text.tokenizer import TINY, load_tokenizer, tokenizer_from_files
from jaxvla.errors import CheckpointError, DataError

SHIPPED = pathlib.Path(jaxvla.__file__).parent / "data" / "text" / "assets" / "tiny_tokenizer"
THINKING = ["<|thinking|>", "<|start_of_thinking|>", "<|end_of_thinking|>", "<img_next>"]
TEXTS = (
    "",
    "   ",
    "put the red cube in the bowl. @ TASK:",
    "机械臂 🤖",
    "don't\r\n\n\ttab \x00",
    "Ünï ﬁ",
    "<think>no</think>",
)


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def qwen_folder(samples):
    return samples / "tok_qwen3_vl_4b_instruct"


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return load_tokenizer(qwen_folder)


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped folder, to be damaged."""
    return shutil.copytree(SHIPPED, tmp_path / "copy")


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_golden_ids_of_qwen3_vl(qwen, qwen_folder):
    golden = json.loads((qwen_folder / "DERIVED_golden_ids.json").read_text())
    assert len(golden) == 19
    for item in golden:
        ids = qwen.encode(item["text"])
        assert ids.dtype == np.int32
        assert ids.tolist() == item["ids"], item["text"]


def test_golden_ids_of_smolvlm2(samples):
    """Of a folder with nothing but a vocabulary, and of what a checkpoint keeps of it."""
    golden = json.loads((samples / "tok_smolvlm" / "DERIVED_golden_ids.json").read_text())
    smolvlm = load_tokenizer(samples / "tok_smolvlm", chats=False)
    assert smolvlm.vocab_size == golden["len_with_added"] == 49280
    assert len(golden["records"]) == 31
    again = tokenizer_from_files(smolvlm.files(), chats=False)
    for item in golden["records"]:
        assert smolvlm.encode(item["text"]).tolist() == item["ids"], item["text"]
        assert again.encode(item["text"]).tolist() == item["ids"], item["text"]
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is missing"):
        load_tokenizer(samples / "tok_smolvlm")
    with pytest.raises(DataError, match="has no chat template"):
        render_chat(smolvlm, [{"role": "user", "content": "hello"}], add_generation_prompt=True)


def test_a_vocabulary_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path, chats=False)


def test_special_tokens_of_qwen3_vl(qwen, qwen_folder):
    config = json.loads((qwen_folder / "config.json").read_text())
    assert qwen.id_of("<|image_pad|>") == config["image_token_id"]
    assert qwen.id_of("<|vision_start|>") == config["vision_start_token_id"]
    assert qwen.id_of("<|vision_end|>") == config["vision_end_token_id"]
    assert (qwen.pad_id, qwen.eos_id) == (151643, 151645)
    assert (qwen.vocab_size, len(qwen.added_tokens)) == (151669, 26)


def test_thinking_tokens_take_the_first_spare_rows(qwen):
    larger = qwen.with_added_tokens(THINKING)
    assert [larger.id_of(name) for name in THINKING] == [151669, 151670, 151671, 151672]
    assert larger.vocab_size == 151673
    assert larger.encode("a<|thinking|><|thinking|> <img_next>").tolist() == [64, 151669, 151669, 220, 151672]
    assert qwen.vocab_size == 151669, "the original stays as it was"


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text


def test_text_is_composed_before_it_is_encoded(tiny):
    assert tiny.encode("cafe\u0301").tolist() == tiny.encode("caf\u00e9").tolist()


def test_tiny_has_the_added_tokens_of_qwen3_vl(tiny, qwen_folder):
    entries = json.loads((qwen_folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert list(tiny.added_tokens) == [entry["content"] for entry in entries.values()]
    assert list(tiny.added_tokens.values()) == list(range(974, 1000))
    for entry in entries.values():
        shown = tiny.decode([tiny.id_of(entry["content"])], skip_special_tokens=True)
        assert shown == ("" if entry["special"] else entry["content"])


@pytest.mark.parametrize("piece", ["<<", " @", "user", "assistant", " cube", " TASK", "\n"])
def test_pieces_that_tiny_has_whole(tiny, piece):
    assert len(tiny.encode(piece)) == 1


def test_tiny_is_small(tiny):
    assert tiny.vocab_size == 1000
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 60_000


def test_spare_rows_decode_to_nothing(tiny):
    assert tiny.decode(np.array([tiny.id_of("<<"), 1023], np.int64)) == "<<"


def test_saved_and_loaded(tiny, tmp_path):
    larger = tiny.with_added_tokens(THINKING)
    larger.save(tmp_path / "made" / "here")
    loaded = load_tokenizer(tmp_path / "made" / "here")
    assert loaded.added_tokens == larger.added_tokens
    assert (loaded.config, loaded.chat_template) == (larger.config, larger.chat_template)
    text = "".join(TEXTS) + "".join(THINKING) + "<|im_end|>"
    assert loaded.encode(text).tolist() == larger.encode(text).tolist()
    again = loaded.with_added_tokens([*THINKING, "<more>"])
    assert again.added_tokens == {**larger.added_tokens, "<more>": 1004}
    again.save(tmp_path / "made" / "here")
    assert load_tokenizer(tmp_path / "made" / "here").id_of("<more>") == 1004


def test_pickled(tiny):
    larger = pickle.loads(pickle.dumps(tiny.with_added_tokens(THINKING)))
    assert larger.encode("put it <|thinking|>").tolist()[-1] == 1000
    assert larger.pad_id == tiny.pad_id


def test_padding_that_a_file_asks_for_is_off(tiny, tmp_path):
    tiny.save(tmp_path)
    padding = {"strategy": {"Fixed": 8}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    change(tmp_path / "tokenizer.json", padding={**padding, "pad_to_multiple_of": None})
    assert load_tokenizer(tmp_path).encode("<<").tolist() == tiny.encode("<<").tolist()


@pytest.mark.parametrize("name", ["", "Ġthe"])
def test_names_that_cannot_be_added(tiny, name):
    with pytest.raises(DataError, match="choose another name"):
        tiny.with_added_tokens(["<new>", name])


def test_unknown_token_and_broken_text(tiny):
    with pytest.raises(DataError, match=r"no token '<\|thinking\|>': add it"):
        tiny.id_of("<|thinking|>")
    with pytest.raises(DataError, match="half a surrogate pair"):
        tiny.encode("a\ud83e")


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer folder at Qwen/Qwen3-VL-4B-Instruct: .*'tiny'"):
        load_tokenizer("Qwen/Qwen3-VL-4B-Instruct")


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_missing_file(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing"):
        load_tokenizer(folder)


def test_missing_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"no chat template in .*add chat_template\.jinja"):
        load_tokenizer(folder)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer_config.json", "merges.txt"])
def test_truncated_file(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 2])
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_truncated_tokenizer_json(tiny, tmp_path):
    tiny.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_other_kinds_of_tokenizer(folder, tmp_path):
    import tokenizers

    config = folder / "tokenizer_config.json"
    change(config, tokenizer_class="GPT2Tokenizer")
    with pytest.raises(CheckpointError, match="'GPT2Tokenizer', not 'Qwen2Tokenizer'"):
        load_tokenizer(folder)
    tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )
    with pytest.raises(CheckpointError, match="is a WordPiece tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("key", "value"), [("pad_token", None), ("eos_token", None)])
def test_missing_role(folder, key, value):
    change(folder / "tokenizer_config.json", **{key: value})
    with pytest.raises(CheckpointError, match=f"has no {key}"):
        load_tokenizer(folder)


def test_text_only_model(folder):
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text())["added_tokens_decoder"]
    change(path, added_tokens_decoder={key: entries[key] for key in ("974", "975", "976")})
    with pytest.raises(CheckpointError, match=r"lacks <\|vision_start\|>, <\|vision_end\|>, <\|image_pad\|>: name"):
        load_tokenizer(folder)


def test_files_of_two_models(folder):
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text())["added_tokens_decoder"]
    change(path, added_tokens_decoder={str(int(key) + 7): entry for key, entry in entries.items()})
    with pytest.raises(CheckpointError, match=r"gives '<\|endoftext\|>' the id 981, but it falls on 974"):
        load_tokenizer(folder)


def test_vocabulary_with_gaps(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    last = max(vocab, key=vocab.get)
    (folder / "vocab.json").write_text(json.dumps({**vocab, last: 5000}))
    with pytest.raises(CheckpointError, match=r"the 1000 token ids of .* have gaps"):
        load_tokenizer(folder)


def test_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the tokenizer"):
        tiny.save(tmp_path / "file" / "folder")
