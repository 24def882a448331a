import dataclasses

import numpy as np
import pytest

from jaxvla.data.text import chat
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import DataError

IMAGE = {"type": "image"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "first "}, IMAGE, {"type": "text", "text": " then\n"}, IMAGE],
    },
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "more <b> & 'x'"},
]
# As transformers 5.23 renders these messages with the template of Qwen3-VL-4B-Instruct.
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nfirst <|vision_start|><|image_pad|><|vision_end|> then\n"
    "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    "<|im_start|>assistant\nok<|im_end|>\n"
    "<|im_start|>user\nmore <b> & 'x'<|im_end|>\n"
)


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def tokenizer(request):
    if request.param == "tiny":
        return load_tokenizer(TINY)
    return load_tokenizer(request.getfixturevalue("samples") / "tok_qwen3_vl_4b_instruct")


def test_templates_render_as_transformers_does(tokenizer):
    assert chat.render_chat(tokenizer, MESSAGES, add_generation_prompt=False) == RENDERED
    assert chat.render_chat(tokenizer, MESSAGES, add_generation_prompt=True) == RENDERED + "<|im_start|>assistant\n"


def test_blocks_leave_no_space(tiny):
    indented = dataclasses.replace(
        tiny, chat_template="{% for m in messages %}\n  {% if m %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}"
    )
    assert chat.render_chat(indented, MESSAGES[:2], add_generation_prompt=False) == "system\nuser\n"


def test_placeholders_become_one_token_for_four_patches(tokenizer):
    ids = chat.encode_chat(tokenizer, MESSAGES, [(16, 16), (4, 10)], add_generation_prompt=False)
    pad = "<|image_pad|>"
    expected = RENDERED.replace(pad, "A", 1).replace(pad, pad * 10).replace("A", pad * 64)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode(expected).tolist()


def test_expansion_keeps_the_order_of_the_images():
    ids = np.array([1, 9, 2, 9, 9, 3], np.int32)
    assert chat.expand_image_placeholders(ids, 9, [2, 1, 3]).tolist() == [1, 9, 9, 2, 9, 9, 9, 9, 3]
    assert chat.expand_image_placeholders(ids[:1], 9, []).tolist() == [1]


@pytest.mark.parametrize("num_tokens", [[], [4], [4, 4, 4]])
def test_placeholders_and_images_must_agree(num_tokens):
    with pytest.raises(DataError, match=rf"2 image placeholders but {len(num_tokens)} images are given"):
        chat.expand_image_placeholders(np.array([9, 1, 9], np.int32), 9, num_tokens)


def test_a_placeholder_smuggled_in_by_text_is_noticed(tiny):
    messages = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "put <|image_pad|> away"}]}]
    with pytest.raises(DataError, match="2 image placeholders but 1 images"):
        chat.encode_chat(tiny, messages, [(16, 16)], add_generation_prompt=True)


@pytest.mark.parametrize(("grid", "tokens"), [((16, 16), 64), ((30, 40), 300), ((2, 4), 2)])
def test_tokens_of_an_image(grid, tokens):
    assert chat.num_image_tokens(grid) == tokens


@pytest.mark.parametrize("grid", [(15, 16), (16, 7), (0, 16), (-2, 2)])
def test_grid_that_does_not_merge(grid):
    with pytest.raises(DataError, match=rf"grid of {grid[0]} x {grid[1]} patches"):
        chat.num_image_tokens(grid)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "without messages"),
        ([{"role": "human", "content": "hi"}], "message 0 has the role 'human'"),
        ([{"content": "hi"}], "message 0 has the role None"),
        ([MESSAGES[3], MESSAGES[0]], "message 1 has the role 'system'"),
        ([{"role": "assistant", "content": [IMAGE]}], r"message 0 \(assistant\) holds .*of type text$"),
        ([{"role": "user", "content": [{"type": "video"}]}], "of type text or image"),
        ([{"role": "user", "content": [{"type": "text"}]}], "of type text or image"),
        ([{"role": "user", "content": ["hi"]}], "holds 'hi'"),
        ([{"role": "user"}], "holds None"),
        ([{"role": "user", "content": IMAGE}], "a list of parts of type text or image"),
    ],
)
def test_messages_of_another_form(tiny, messages, fault):
    with pytest.raises(DataError, match=fault):
        chat.render_chat(tiny, messages, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("template", "fault"),
    [("{% for %}", "not valid Jinja"), ("{{ messages.x.y }}", "fails"), ("{{ ''.__class__.__mro__ }}", "fails")],
)
def test_templates_that_fail(tiny, template, fault):
    broken = dataclasses.replace(tiny, chat_template=template)
    with pytest.raises(DataError, match=fault):
        chat.render_chat(broken, MESSAGES, add_generation_prompt=False)


def test_left_padding():
    prompts = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    tokens, mask = chat.left_pad(prompts, pad_id=8)
    assert tokens.tolist() == [[5, 6, 7], [8, 8, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    tokens, mask = chat.left_pad(prompts, pad_id=0, length=5)
    assert tokens.tolist() == [[0, 0, 5, 6, 7], [0, 0, 0, 0, 8]]
    assert mask.sum(axis=1).tolist() == [3, 1]
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)


def test_prompts_that_cannot_be_batched():
    short, empty = np.array([1], np.int32), np.array([], np.int32)
    with pytest.raises(DataError, match="prompt 1 has 4 tokens but the batch 3 columns"):
        chat.left_pad([short, np.arange(4, dtype=np.int32)], pad_id=0, length=3)
    for prompts in ([], [short, empty]):
        with pytest.raises(DataError, match="no prompts, or an empty prompt"):
            chat.left_pad(prompts, pad_id=0)
