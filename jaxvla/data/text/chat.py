"""From chat messages with images to padded rows of token ids, all on the host."""

import functools
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxvla.data.text.tokenizer import IMAGE_PAD, Tokenizer
from jaxvla.data.transforms.images import MERGE_SIZE
from jaxvla.errors import DataError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]

_ROLES = ("system", "user", "assistant")


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The text of a chat by the tokenizer's own template, as transformers' `apply_chat_template` renders it.

    Args:
        tokenizer: whose `chat_template` is filled.
        messages: {"role": "system" | "user" | "assistant", "content": text or a list of parts}; a part is
            {"type": "text", "text": ...} or, in user turns, {"type": "image"}. A system message comes first.
        add_generation_prompt: end with the opening of the assistant's next turn.

    Raises:
        DataError: there is no message, one is not of this form, or there is no template or it cannot render them.
    """
    import jinja2

    if not tokenizer.chat_template:
        raise DataError("this tokenizer has no chat template: it is none of a model that chats")
    if not messages:
        raise DataError("cannot render a chat without messages: give it at least one")
    for i, message in enumerate(messages):
        _check_message(message, i)
    try:
        return _compiled(tokenizer.chat_template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt
        )
    except jinja2.TemplateError as error:
        raise DataError(
            f"the tokenizer's chat template fails on these messages ({error}): mend the template"
        ) from error


def expand_image_placeholders(ids: np.ndarray, image_pad_id: int, num_tokens: Sequence[int]) -> np.ndarray:
    """Repeats each image placeholder as often as its image has tokens.

    Args:
        ids: int32 [n], with one `image_pad_id` for each image.
        image_pad_id: the id of <|image_pad|>.
        num_tokens: tokens of each image, in the order of the text; see `num_image_tokens`.

    Returns:
        int32 [n + sum(num_tokens) - len(num_tokens)].

    Raises:
        DataError: there are more or fewer placeholders than images.
    """
    is_image = ids == image_pad_id
    if np.count_nonzero(is_image) != len(num_tokens):
        raise DataError(
            f"the text has {np.count_nonzero(is_image)} image placeholders but {len(num_tokens)} images are given: "
            "write one image part for each image"
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[is_image] = num_tokens
    return np.repeat(ids, repeats)


def num_image_tokens(grid: tuple[int, int], merge_size: int = MERGE_SIZE) -> int:
    """Tokens that an image of `grid` (rows, columns) patches takes in the text.

    Raises:
        DataError: the grid does not divide into squares of `merge_size` patches.
    """
    rows, columns = grid
    if rows % merge_size or columns % merge_size or rows <= 0 or columns <= 0:
        raise DataError(
            f"a grid of {rows} x {columns} patches does not divide by {merge_size}: resize to the model's grid"
        )
    return rows * columns // merge_size**2


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], grids: Sequence[tuple[int, int]], *, add_generation_prompt: bool
) -> np.ndarray:
    """The ids of a chat, int32 [n], with image placeholders expanded.

    Args:
        tokenizer: of the model.
        messages: as `render_chat` takes them.
        grids: (rows, columns) in patches of each image, in the order of the text.
        add_generation_prompt: end with the opening of the assistant's next turn.

    Raises:
        DataError: as `render_chat`, `num_image_tokens` and `expand_image_placeholders` do.
    """
    ids = tokenizer.encode(render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt))
    return expand_image_placeholders(ids, tokenizer.id_of(IMAGE_PAD), [num_image_tokens(grid) for grid in grids])


def left_pad(prompts: Sequence[np.ndarray], pad_id: int, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different length as one array whose rows all end in the last column, ready to be continued.

    Args:
        prompts: b arrays of ids.
        pad_id: fills the columns before a prompt.
        length: columns, t; the longest prompt's where None. Give it, so that every batch has the same shape.

    Returns:
        tokens int32 [b, t], and mask bool [b, t], true where a prompt stands.

    Raises:
        DataError: there is no prompt, one is empty, or one is longer than `length`.
    """
    if not prompts or min(map(len, prompts)) == 0:
        raise DataError("cannot batch no prompts, or an empty prompt: give every sample at least one token")
    sizes = np.array([len(prompt) for prompt in prompts])
    columns = int(sizes.max()) if length is None else length
    if sizes.max() > columns:
        raise DataError(
            f"prompt {sizes.argmax()} has {sizes.max()} tokens but the batch {columns} columns: raise length"
        )
    tokens = np.full((len(prompts), columns), pad_id, np.int32)
    mask = np.arange(columns) >= columns - sizes[:, None]
    tokens[mask] = np.concatenate(prompts)
    return tokens, mask


def _check_message(message: Message, i: int) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES or (role == "system" and i > 0):
        raise DataError(f"message {i} has the role {role!r}: use user or assistant, or system for the first")
    if isinstance(content, str):
        return
    kinds = ("text", "image") if role == "user" else ("text",)
    faults = [part for part in content if not _is_part(part, kinds)] if isinstance(content, list | tuple) else [content]
    if faults:
        raise DataError(
            f"message {i} ({role}) holds {reprlib.repr(faults[0])}: its content is a text, or a list of parts of type "
            f"{' or '.join(kinds)}"
        )


def _is_part(part: Any, kinds: Sequence[str]) -> bool:
    if not isinstance(part, Mapping) or part.get("type") not in kinds:
        return False
    return part["type"] == "image" or isinstance(part.get("text"), str)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> "jinja2.Template":
    """Compiled with transformers' settings; sandboxed, for a template is code from wherever the folder came from."""
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template is not valid Jinja ({error}): mend the template") from error
