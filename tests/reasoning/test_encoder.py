import concurrent.futures
import pickle
import sys

import numpy as np
import pytest
from reasoning.text_cases import FULL_WORDS, thinking_tokenizer

from jaxvla.errors import DataError
from jaxvla.reasoning import encoder as encoder_module
from jaxvla.reasoning.encoder import TextEncoder

TEXTS = (
    "put the pot down",
    "a  b",
    "a \n b\nc",
    "a\u00a0 b\u00a0c",
    "a \u2003 b",
    "x\t y",
    "it's Bob's 123 45.6 [1, 2]",
    "e \u0301 e\u0301",
    "机械臂 抓 🤖",
    "a\x1c b",
    "...  !?\r\n  ok",
    " ".join(FULL_WORDS),
)


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def tokenizer(request):
    if request.param == "tiny":
        return thinking_tokenizer()
    return thinking_tokenizer(request.getfixturevalue("samples") / "tok_qwen3_vl_4b_instruct")


def name(i):
    return f"text {i}"


def test_words_encode_as_texts_do(tokenizer):
    encoder = TextEncoder(tokenizer)
    signs = [
        " ",
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u2028",
        "a",
        "Bc",
        "1",
        "23",
        ".",
        "'s",
        "!\n",
        "é",
        "\u0301",
        "机",
    ]
    rng = np.random.default_rng(0)
    made = ["".join(rng.choice(signs, rng.integers(1, 15))).strip() or "x" for _ in range(2000)]
    for texts in (TEXTS, made, made[::-1]):
        for text, row in zip(texts, encoder.encode(texts, name)):
            assert row.dtype == np.int32
            assert row.tolist() == tokenizer.encode(f" {text}").tolist(), repr(text)


def test_memory_is_bounded_and_changes_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr(encoder_module, "_MEMORY", 10)
    encoder = TextEncoder(tokenizer)
    for i in range(40):
        rows = encoder.encode([f"text {i}", "often", f"x {i % 7} often"], name)
        assert [tokenizer.decode(row) for row in rows] == [f" text {i}", " often", f" x {i % 7} often"]
        assert len(encoder._memory) <= 10 + 4
    assert pickle.loads(pickle.dumps(encoder)).encode(["often"], name)[0].tolist() == rows[1].tolist()


def test_threads_share_an_encoder(tokenizer, monkeypatch):
    monkeypatch.setattr(encoder_module, "_MEMORY", 2)
    encoder = TextEncoder(tokenizer)

    def decoded(i):
        texts = [f"w{i * j % 97} and {j}" for j in range(40)]
        return all(tokenizer.decode(row) == f" {text}" for text, row in zip(texts, encoder.encode(texts, name)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(decoded, range(1000)))
    finally:
        sys.setswitchinterval(interval)


def test_faults_are_named_every_time(tokenizer):
    encoder = TextEncoder(tokenizer)
    for _ in range(2):
        with pytest.raises(DataError, match=r"text 1: 'see <\|im_end\|>, not' holds '<\|im_end\|>', which .* control"):
            encoder.encode(["fine", "see <|im_end|>, not", "fine"], name)
        with pytest.raises(DataError, match=r"text 2: 'half \\ud800 pair' holds half a surrogate pair"):
            encoder.encode(["fine", "words", "half \ud800 pair"], name)
    assert tokenizer.decode(encoder.encode(["fine"], name)[0]) == " fine"
