"""Text and images as transformers prepares them for Qwen3-VL, from the model's real tokenizer and processor files."""

import types

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvla.data.text import chat
from jaxvla.data.text.tokenizer import IMAGE_PAD, TINY, load_tokenizer
from jaxvla.data.transforms import images
from jaxvla.ops.patches import patchify

pytestmark = pytest.mark.parity

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "put it "}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "TASK: <think>x</think>"}]},
    {"role": "user", "content": "and now?"},
]


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers")
    # The Pillow backend is the one that runs without torchvision.
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as processing

    return types.SimpleNamespace(tokenizer=module.AutoTokenizer, processor=processing.Qwen2VLImageProcessorPil)


@pytest.fixture(scope="module")
def folder(samples):
    return samples / "tok_qwen3_vl_4b_instruct"


@pytest.fixture(scope="module")
def theirs(transformers, folder):
    return transformers.tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return load_tokenizer(folder)


def texts(count: int) -> list[str]:
    """Random runs of letters of many scripts, digits, spaces, signs, combining marks and added tokens."""
    rng = np.random.default_rng(0)
    signs = list("abcdefgABC 0123456789  \n\r\t.,:;'\"<>|[]{}@#-+_é́ẞßЖиδ語机械🤖‍️\u00a0\u2028\ufb01")
    words = [*signs, "'s", "'LL", "the ", " robot", "<|im_end|>", "<think>", IMAGE_PAD, "<|", "|>", "\r\n", "    "]
    return ["".join(rng.choice(words, rng.integers(1, 40))) for _ in range(count)]


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = [(224, 224), (256, 256), (480, 640), (100, 300), (64, 80), (700, 500)]
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    smooth = [np.asarray(Image.fromarray(image[::16, ::16]).resize(image.shape[1::-1])) for image in noise]
    return noise + smooth


def test_token_ids(ours, theirs):
    for text in texts(400):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).tolist() == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_chat_template(ours, theirs):
    for prompt in (False, True):
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert chat.render_chat(ours, MESSAGES, add_generation_prompt=prompt) == expected
        assert chat.render_chat(load_tokenizer(TINY), MESSAGES, add_generation_prompt=prompt) == expected


def test_expanded_placeholders(ours, theirs):
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    first, second, third = text.split(IMAGE_PAD)
    expected = theirs(first + IMAGE_PAD * 64 + second + IMAGE_PAD * 300 + third)["input_ids"]
    ids = chat.encode_chat(ours, MESSAGES, [(16, 16), (30, 40)], add_generation_prompt=True)
    assert ids.tolist() == expected


def test_saved_tokenizers_load_in_transformers(transformers, ours, tmp_path):
    names = ["<|thinking|>", "<img_next>"]
    for tokenizer in (ours, load_tokenizer(TINY)):
        larger = tokenizer.with_added_tokens(names)
        larger.save(tmp_path)
        loaded = transformers.tokenizer.from_pretrained(tmp_path)
        assert len(loaded) == larger.vocab_size
        for text in [*texts(50), "go <|thinking|><|thinking|> <img_next>"]:
            assert loaded(text)["input_ids"] == larger.encode(text).tolist(), text
        assert loaded.apply_chat_template(MESSAGES, tokenize=False) == chat.render_chat(
            larger, MESSAGES, add_generation_prompt=False
        )
        assert (loaded.pad_token_id, loaded.eos_token_id) == (larger.pad_id, larger.eos_id)


def test_tokenizers_saved_by_transformers_load(ours, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.added_tokens, loaded.chat_template) == (ours.added_tokens, ours.chat_template)
    for text in texts(50):
        assert loaded.encode(text).tolist() == ours.encode(text).tolist()


def test_patches_are_bit_equal(transformers, folder):
    processor = transformers.processor.from_pretrained(folder)
    for picture in pictures():
        expected = processor(Image.fromarray(picture), return_tensors="np")
        resized = images.resize_to_grid(picture[None])[0]
        assert expected["image_grid_thw"].tolist() == [[1, *images.patch_grid(*resized.shape[:2])]]
        np.testing.assert_array_equal(jax.jit(patchify)(resized), expected["pixel_values"])


def test_torchvision_resizes_almost_alike(transformers):
    """The kernel behind torchvision's resize of uint8 images: at most two levels off, in under 1 % of the values."""
    import torch

    for picture in pictures():
        resized = images.resize_to_grid(picture[None])[0]
        frames = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        theirs = torch.nn.functional.interpolate(frames, resized.shape[:2], mode="bicubic", antialias=True)
        off = np.abs(theirs[0].permute(1, 2, 0).numpy().astype(int) - resized)
        assert off.max() <= 2
        assert np.count_nonzero(off) <= 0.01 * off.size
