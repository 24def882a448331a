"""From texts to token ids: the prefix of a sample (images and instruction) and its suffix (the words).

One user turn, as LaRA-VLA lays it out, cut in two where the latent slots are (S, E: start and end of thinking):

    HEAD BASE INSTRUCTION. @ S  [slots]  E WORDS<|im_end|>\\n     with slots
    HEAD BASE INSTRUCTION. @             WORDS<|im_end|>\\n       without
    HEAD BASE INSTRUCTION<|im_end|>\\n                            without any reasoning, see `Curriculum.plan`

HEAD is <|im_start|>user\\n and, for each view, <|vision_start|><|image_pad|>...<|vision_end|>.
Encoding the parts of a text by themselves gives the ids of the whole, since they meet where no token can reach across:
at an added token, or between a sign that is no space and one space before a tag.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxvla.data.text.tokenizer import IM_END, IM_START, IMAGE_PAD, VISION_END, VISION_START, Tokenizer
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.encoder import TextEncoder

THINKING = "<|thinking|>"
START_OF_THINKING = "<|start_of_thinking|>"
END_OF_THINKING = "<|end_of_thinking|>"
# In the order of their ids, for `Tokenizer.with_added_tokens`.
THINKING_TOKENS = (THINKING, START_OF_THINKING, END_OF_THINKING)
DELIMITER = " @"

# What follows the instruction: nothing, words, or slots.
BARE, WORDS, SLOTS = "bare", "words", "slots"

_ENDINGS = {BARE: "", WORDS: DELIMITER, SLOTS: f"{DELIMITER} {START_OF_THINKING}"}
_SHORTEST_SUFFIX = 4


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The keys of config.prompt.

    Attributes:
        base_prompt: said before the instruction; may be empty. That of LaRA's released weights is "Robot task
            reasoning: first output the Subtask to preform next, then output the BBox of target object, then generate
            the Motion Reasoning. Instruction:", with this spelling.
        lower_case_instruction: as ECoT does, since people write "Put" and "put"; LaRA leaves instructions as they are.
        max_prefix_length: most columns of the prefix, image tokens included; 0 for as many as the data needs.
        max_suffix_length: most columns of the suffix; 0 for as many as the data needs.
        on_overflow: "error", or "truncate" to cut the end of an instruction or of the words, which is counted.
    """

    base_prompt: str = "Robot task reasoning: first think the task through, then act. Instruction:"
    lower_case_instruction: bool = True
    max_prefix_length: int = 0
    max_suffix_length: int = 0
    on_overflow: str = "error"

    def __post_init__(self) -> None:
        where = "config.prompt"
        if self.base_prompt != self.base_prompt.strip():
            raise ConfigError(f"{where}.base_prompt must not start or end with a space: {self.base_prompt!r}")
        if self.on_overflow not in ("error", "truncate"):
            raise ConfigError(f"{where}.on_overflow must be error or truncate, not {self.on_overflow!r}")
        if self.max_prefix_length < 0:
            raise ConfigError(f"{where}.max_prefix_length must be positive, or 0, not {self.max_prefix_length}")
        if self.max_suffix_length != 0 and self.max_suffix_length < _SHORTEST_SUFFIX:
            raise ConfigError(
                f"{where}.max_suffix_length must be at least {_SHORTEST_SUFFIX}, or 0, not {self.max_suffix_length}"
            )
        if self.on_overflow == "truncate" and not (self.max_prefix_length or self.max_suffix_length):
            raise ConfigError(f"{where}.on_overflow=truncate needs max_prefix_length or max_suffix_length")


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBuilder:
    """Makes prefixes and suffixes of token ids. Can be pickled, and used from several threads.

    Args:
        tokenizer: with `THINKING_TOKENS` added.
        config: the wording and the limits.
        image_tokens: how many tokens each view takes, in order; see `chat.num_image_tokens`.

    Attributes:
        encoder: of instructions and words.
        pad_id: fills the columns that a text leaves.
        end_of_turn: int32 [2], <|im_end|> and a line break, which every suffix ends with.

    Raises:
        DataError: the tokenizer lacks a token.
        ConfigError: max_prefix_length has no room for an instruction.
    """

    tokenizer: Tokenizer
    config: PromptConfig
    image_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        names = {name: tokenizer.id_of(name) for name in (*THINKING_TOKENS, IM_END)}
        views = "".join(f"{VISION_START}{IMAGE_PAD * n}{VISION_END}" for n in self.image_tokens)
        base, encoder = self.config.base_prompt, TextEncoder(tokenizer)
        if base:
            encoder.encode([base], lambda _: "config.prompt.base_prompt")
        fields = {
            "pad_id": tokenizer.pad_id,
            "encoder": encoder,
            "end_of_turn": np.array([names[IM_END], *tokenizer.encode("\n")], np.int32),
            "_head": tokenizer.encode(f"{IM_START}user\n{views}{base}"),
            "_endings": {kind: tokenizer.encode(text) for kind, text in _ENDINGS.items()},
            "_end_of_thinking": np.array([names[END_OF_THINKING]], np.int32),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        needed = len(self._head) + len(self._endings[SLOTS])
        if 0 < self.config.max_prefix_length <= needed:
            raise ConfigError(
                f"config.prompt.max_prefix_length={self.config.max_prefix_length} leaves no room for an instruction: "
                f"images, base_prompt and delimiter take {needed}"
            )

    def instruction(self, text: str, name: str) -> str:
        """An instruction as it stands in a prefix.

        Args:
            text: as it was given or annotated.
            name: whose it is, for an error.

        Raises:
            DataError: it is empty.
        """
        text = text.strip()
        if not text:
            raise DataError(f"{name} has no instruction; for data, set config.data.skip_unlabeled=True")
        return text.lower() if self.config.lower_case_instruction else text

    def prefixes(
        self, instructions: Sequence[str], kinds: Sequence[str], name: Callable[[int], str]
    ) -> list[np.ndarray]:
        """Everything before the slots or the words; each int32 [n], not cut.

        Args:
            instructions: b texts.
            kinds: BARE, WORDS or SLOTS for each.
            name: says for an error whose instruction number i is.

        Raises:
            DataError: an instruction is empty, or cannot be encoded.
        """
        texts = [
            self.instruction(text, name(i)) + ("" if kind == BARE else ".")
            for i, (text, kind) in enumerate(zip(instructions, kinds))
        ]
        bodies = self.encoder.encode(texts, name)
        return [np.concatenate([self._head, body, self._endings[kind]]) for body, kind in zip(bodies, kinds)]

    def cut_prefix(self, prefix: np.ndarray, kind: str, length: int) -> np.ndarray:
        """A prefix without the end of its instruction, so that it has `length` tokens and ends as it did."""
        return _keep_end(prefix, len(self._endings[kind]), length)

    def suffixes(
        self, words: Sequence[Sequence[str]], has_slots: Sequence[bool], name: Callable[[int], str]
    ) -> list[np.ndarray]:
        """Everything after the slots, or after the prefix; each int32 [n], not cut.

        Args:
            words: for each of b samples its components in words, none of which starts or ends with a space.
            has_slots: whether an end of thinking stands before them.
            name: says for an error whose words number i is.

        Raises:
            DataError: a text cannot be encoded.
        """
        said = [i for i, parts in enumerate(words) if parts]
        rows = dict(zip(said, self.encoder.encode([" ".join(words[i]) for i in said], lambda k: name(said[k]))))
        silence = self._end_of_thinking[:0]
        return [
            np.concatenate([self._end_of_thinking[: int(slots)], rows.get(i, silence), self.end_of_turn])
            for i, slots in enumerate(has_slots)
        ]

    def cut_suffix(self, suffix: np.ndarray, length: int) -> np.ndarray:
        """A suffix without the end of its words, so that it has `length` tokens, the end of the turn among them."""
        return _keep_end(suffix, len(self.end_of_turn), length)


def _keep_end(ids: np.ndarray, end: int, length: int) -> np.ndarray:
    return np.concatenate([ids[: length - end], ids[len(ids) - end :]])
