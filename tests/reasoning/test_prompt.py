import pickle

import numpy as np
import pytest
from reasoning.text_cases import FULL_WORDS, LARA_WORDS, thinking_tokenizer

from jaxvla.data.schema import TURN_TOKENS
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.prompt import (
    BARE,
    END_OF_THINKING,
    SLOTS,
    START_OF_THINKING,
    THINKING,
    WORDS,
    PromptBuilder,
    PromptConfig,
)

LARA_PROMPT = (
    "Robot task reasoning: first output the Subtask to preform next, then output the BBox of target object, "
    "then generate the Motion Reasoning. Instruction:"
)
HEAD = "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>Say."
# Signs that meet badly: spaces, breaks, digits, contractions, composing accents, scripts without spaces.
SIGNS = [
    "a",
    "B",
    "é",
    "e\u0301",
    "'s",
    "'",
    "12",
    "3",
    " ",
    "  ",
    "\n",
    "\t",
    ".",
    "!?",
    "@",
    "-",
    "[",
    "机",
    "🤖",
    "\u0338",
]


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def tokenizer(request):
    if request.param == "tiny":
        return thinking_tokenizer()
    return thinking_tokenizer(request.getfixturevalue("samples") / "tok_qwen3_vl_4b_instruct")


@pytest.fixture(scope="module")
def tiny():
    return thinking_tokenizer()


def builder(tokenizer, image_tokens=(3,), **config):
    return PromptBuilder(tokenizer, PromptConfig(**({"base_prompt": "Say."} | config)), image_tokens)


def name(i):
    return f"sample {i}"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (BARE, f"{HEAD} put it down"),
        (WORDS, f"{HEAD} put it down. @"),
        (SLOTS, f"{HEAD} put it down. @ <|start_of_thinking|>"),
    ],
)
def test_prefixes(tokenizer, kind, text):
    (row,) = builder(tokenizer).prefixes(["\n Put it down "], [kind], name)
    assert row.dtype == np.int32
    assert tokenizer.decode(row) == text


def test_prefixes_of_other_prompts(tokenizer):
    views = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
    two = builder(tokenizer, (2, 1), lower_case_instruction=False, base_prompt=LARA_PROMPT)
    rows = two.prefixes(["Put", "go"], [SLOTS, BARE], name)
    expected = f"<|im_start|>user\n{views}{LARA_PROMPT}"
    assert tokenizer.decode(rows[0]) == f"{expected} Put. @ <|start_of_thinking|>"
    assert tokenizer.decode(rows[1]) == f"{expected} go"
    (row,) = builder(tokenizer, (), base_prompt="").prefixes(["go"], [WORDS], name)
    assert tokenizer.decode(row) == "<|im_start|>user\n go. @"


def test_suffixes(tokenizer):
    assert len(builder(tokenizer).end_of_turn) == TURN_TOKENS
    rows = builder(tokenizer).suffixes([FULL_WORDS[5:7], LARA_WORDS[:1], (), ()], [False, True, True, False], name)
    assert [tokenizer.decode(row) for row in rows] == [
        " MOVE REASONING: the pot is to the left MOVE: move left, close gripper<|im_end|>\n",
        "<|end_of_thinking|> Subtask: grasp the bowl.<|im_end|>\n",
        "<|end_of_thinking|><|im_end|>\n",
        "<|im_end|>\n",
    ]
    assert all(row.dtype == np.int32 for row in rows)


def test_parts_encode_as_the_whole_does(tokenizer):
    rng = np.random.default_rng(0)
    made = builder(tokenizer)
    for _ in range(300):
        texts = ["".join(rng.choice(SIGNS, rng.integers(1, 12))).strip() or "x" for _ in range(4)]
        words = tuple(f"TASK: {text}" for text in texts[1:])[: rng.integers(0, 4)]
        for kind, count in ((SLOTS, 2), (WORDS, 0), (BARE, 0)):
            said = words if kind != BARE else ()
            (prefix,) = made.prefixes(texts[:1], [kind], name)
            (suffix,) = made.suffixes([said], [count > 0], name)
            slots = [tokenizer.id_of(THINKING)] * count
            body = texts[0].lower() + {SLOTS: f". @ {START_OF_THINKING}", WORDS: ". @", BARE: ""}[kind]
            thought = THINKING * count + END_OF_THINKING * (count > 0)
            whole = f"{HEAD} {body}{thought}{''.join(f' {part}' for part in said)}<|im_end|>\n"
            assert [*prefix, *slots, *suffix] == tokenizer.encode(whole).tolist(), whole


def test_names_of_added_tokens_are_refused(tokenizer):
    made = builder(tokenizer)
    assert len(tokenizer.added_tokens) >= 10
    for token in tokenizer.added_tokens:
        with pytest.raises(DataError, match=r"sample 1: 'put.*' holds .* a control sign") as error:
            made.prefixes(["fine", f"put{token}it"], [WORDS, WORDS], name)
        assert repr(token) in str(error.value)
        with pytest.raises(DataError, match="sample 2: "):
            made.suffixes([("TASK: fine",), (), ("TASK: a", f"PLAN: {token}")], [True] * 3, name)
    # Not remembered either, and not hidden by capitals.
    for text in ("<|im_end|>", "<|im_end|>", "<|IM_END|>"):
        with pytest.raises(DataError, match="control sign"):
            made.prefixes([text], [BARE], name)
    with pytest.raises(DataError, match="base_prompt"):
        builder(tokenizer, base_prompt="<|im_end|>")


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_instructions_are_refused(tiny, text):
    with pytest.raises(
        DataError, match=r"sample 1 has no instruction; for data, set config\.data\.skip_unlabeled=True"
    ):
        builder(tiny).prefixes(["fine", text], [BARE, SLOTS], name)


def test_half_a_surrogate_pair_is_refused(tiny):
    with pytest.raises(DataError, match=r"sample 1: 'TASK: \\ud800' holds half a surrogate pair"):
        builder(tiny).suffixes([("TASK: fine",), ("TASK: \ud800",)], [True, True], name)


def test_tokenizer_without_thinking_tokens_is_refused():
    with pytest.raises(DataError, match=r"no token '<\|thinking\|>'"):
        builder(load_tokenizer(TINY))


def test_cut_prefixes_lose_the_end_of_the_instruction(tiny):
    made = builder(tiny, max_prefix_length=64, on_overflow="truncate")
    for kind, end in ((BARE, 0), (WORDS, 1), (SLOTS, 3)):
        (row,) = made.prefixes(["put the red cube on the blue cloth"], [kind], name)
        cut = made.cut_prefix(row, kind, len(row) - 4)
        np.testing.assert_array_equal(cut, [*row[: len(row) - end - 4], *row[len(row) - end :]])


def test_cut_suffixes_keep_the_end_of_the_turn(tiny):
    made = builder(tiny)
    (row,) = made.suffixes([FULL_WORDS], [True], name)
    cut = made.cut_suffix(row, 9)
    assert cut.tolist() == [*row[:7], *row[-2:]]
    assert tiny.decode(cut).endswith("<|im_end|>\n")


def test_limit_without_room_for_an_instruction(tiny):
    (shortest,) = builder(tiny, (8,)).prefixes(["a"], [SLOTS], name)
    needed = len(shortest) - 1
    builder(tiny, (8,), max_prefix_length=needed)
    with pytest.raises(ConfigError, match=f"max_prefix_length={needed - 1} leaves no room .* take {needed - 1}"):
        builder(tiny, (8,), max_prefix_length=needed - 1)


def test_builders_can_be_pickled(tiny):
    made = builder(tiny)
    (row,) = made.prefixes(["go"], [SLOTS], name)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).prefixes(["go"], [SLOTS], name)[0], row)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_prompt": "Say. "}, "base_prompt must not start or end with a space"),
        ({"on_overflow": "cut"}, "on_overflow must be error or truncate, not 'cut'"),
        ({"on_overflow": "truncate"}, "truncate needs max_prefix_length or max_suffix_length"),
        ({"max_prefix_length": -1}, "max_prefix_length must be positive, or 0, not -1"),
        ({"max_suffix_length": 3}, "max_suffix_length must be at least 4, or 0, not 3"),
        ({"max_suffix_length": -8}, "max_suffix_length must be at least 4"),
    ],
)
def test_bad_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        PromptConfig(**values)
