"""Byte-level BPE tokenizers: from a local folder, or the small one that ships with the package.

Those of models that chat, of the Qwen family, come with a chat template and tokens for turns and images. Of others the
vocabulary is enough.
"""

import copy
import dataclasses
import json
import operator
import os
import pathlib
import reprlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxvla.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import tokenizers

TINY = "tiny"

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"

_ASSETS = pathlib.Path(__file__).parent / "assets"
_NUM_BYTES = 256
_NEEDED = (IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD)
_PROPERTIES = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")

# What is merged never crosses these pieces: contractions, words with the space before them, single digits, runs of
# other signs, line breaks, spaces. From transformers' models/qwen2/tokenization_qwen2.py.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back. Made by `load_tokenizer`; can be pickled.

    Attributes:
        backend: vocabulary, merges and added tokens.
        config: the content of tokenizer_config.json, without added tokens and template.
        chat_template: the Jinja template that `chat.render_chat` fills; empty where there is none.
    """

    backend: "tokenizers.Tokenizer"
    config: Mapping[str, Any]
    chat_template: str

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [n]; nothing is put before or after it.

        The name of an added token, such as <|image_pad|>, becomes that token wherever it stands in `text`.

        Raises:
            DataError: the text is not valid Unicode.
        """
        try:
            return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)
        except TypeError as error:
            raise DataError(
                f"cannot encode {reprlib.repr(text)}: it holds half a surrogate pair; mend the text"
            ) from error

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """The text of `ids`. An id without a token, such as a spare embedding row's, gives no text.

        Args:
            ids: [n], such as a row of generated tokens.
            skip_special_tokens: leave out added tokens that are control signs, such as <|im_end|>.
        """
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def id_of(self, token: str) -> int:
        """The id of one token by name.

        Raises:
            DataError: no such token.
        """
        found = self.backend.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no token {token!r}: add it with with_added_tokens([{token!r}])")
        return found

    @property
    def vocab_size(self) -> int:
        """One above the highest id. The embedding may have more rows; those are spare."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def pad_id(self) -> int:
        """The id that fills short rows of a batch; of tokenizers of models that chat."""
        return self.id_of(_name(self.config["pad_token"]))

    @property
    def eos_id(self) -> int:
        """The id that ends a turn; of tokenizers of models that chat."""
        return self.id_of(_name(self.config["eos_token"]))

    @property
    def added_tokens(self) -> dict[str, int]:
        """Name to id of every token outside the merged vocabulary, in the order of their ids."""
        return {token.content: i for i, token in sorted(self.backend.get_added_tokens_decoder().items())}

    def with_added_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """This tokenizer with `names` as special tokens, in order, on the ids from `vocab_size` on.

        A name that was added before keeps its id, so that the call can be repeated on a saved tokenizer. Whether the
        model's embedding has rows for the new `vocab_size` is for the caller to check.

        Raises:
            DataError: a name is empty, or belongs to an ordinary token, whose embedding is in use.
        """
        import tokenizers

        backend, added = copy.deepcopy(self.backend), self.added_tokens
        for name in names:
            if not name or (name not in added and self.backend.token_to_id(name) is not None):
                raise DataError(
                    f"cannot add {name!r} as a token: it is empty or an ordinary token; choose another name"
                )
            backend.add_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
        return dataclasses.replace(self, backend=backend)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, which transformers reads as well.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        path = pathlib.Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name, content in self.files().items():
                (path / name).write_text(content, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write the tokenizer to {path}: {error.strerror}") from error

    def files(self) -> dict[str, str]:
        """The files that `save` writes, name to content."""
        decoder = {str(i): _fields(token) for i, token in sorted(self.backend.get_added_tokens_decoder().items())}
        return {
            "tokenizer.json": self.backend.to_str(),
            "tokenizer_config.json": json.dumps({**self.config, "added_tokens_decoder": decoder}, indent=1) + "\n",
            **({"chat_template.jinja": self.chat_template} if self.chat_template else {}),
        }


def load_tokenizer(folder: str | os.PathLike[str], *, chats: bool = True) -> Tokenizer:
    """The tokenizer of a local folder, or the one of 1000 tokens that ships with the package, for "tiny".

    Args:
        folder: holds tokenizer_config.json, a chat template (chat_template.jinja, chat_template.json, or in the
            config), and either tokenizer.json or vocab.json + merges.txt, as Hugging Face lays out Qwen models.
        chats: False where plain text is all that it is for, such as that of SmolVLM2: tokenizer.json is then enough.

    Raises:
        CheckpointError: the folder or one of its files is missing or damaged, or is of another kind of tokenizer.
    """
    path = _ASSETS / "tiny_tokenizer" if os.fspath(folder) == TINY else pathlib.Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"no tokenizer folder at {path}: name a local folder, or {TINY!r} for the one that ships")
    has_config = chats or (path / "tokenizer_config.json").is_file()
    config = _read_json(path / "tokenizer_config.json") if has_config else {}
    entries = config.pop("added_tokens_decoder", {})
    template = _chat_template(path, config.pop("chat_template", None), needed=chats)
    if (file := path / "tokenizer.json").is_file():
        backend = _from_tokenizer_json(file)
    elif not has_config:
        raise CheckpointError(f"{file} is missing: a tokenizer folder needs it")
    else:
        backend = _from_vocab_and_merges(path, config.get("tokenizer_class"))
    _add_tokens(backend, entries, path)
    _check_ids(backend, path)
    if chats:
        _check_tokens(backend, config, path)
    return Tokenizer(backend, config, template)


def tokenizer_from_files(files: Mapping[str, str], *, chats: bool = True) -> Tokenizer:
    """The inverse of `Tokenizer.files`; `chats` as of `load_tokenizer`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (pathlib.Path(folder) / pathlib.Path(name).name).write_text(content, encoding="utf-8")
        return load_tokenizer(folder, chats=chats)


def byte_level_bpe(model: "tokenizers.models.BPE") -> "tokenizers.Tokenizer":
    """What Qwen's tokenizers put around their vocabulary: NFC, the split into pieces, bytes for signs."""
    import tokenizers

    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _from_tokenizer_json(path: pathlib.Path) -> "tokenizers.Tokenizer":
    import tokenizers

    # The library raises bare Exceptions.
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"cannot read {path} ({error}): get the file again") from error
    if not isinstance(backend.model, tokenizers.models.BPE):
        raise CheckpointError(
            f"{path} is a {type(backend.model).__name__} tokenizer, not byte-level BPE: name the folder of a Qwen model"
        )
    # The file may ask for padding and truncation; `encode` does neither.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _from_vocab_and_merges(path: pathlib.Path, tokenizer_class: str | None) -> "tokenizers.Tokenizer":
    import tokenizers

    if tokenizer_class not in _QWEN_CLASSES:
        raise CheckpointError(
            f"{path / 'tokenizer_config.json'} names tokenizer_class {tokenizer_class!r}, not {_QWEN_CLASSES[0]!r}: "
            "name the folder of a Qwen model"
        )
    vocab = _read_json(path / "vocab.json")
    lines = _read(path / "merges.txt").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if len(merges) + _NUM_BYTES != len(vocab):
        raise CheckpointError(
            f"vocab.json of {path} has {len(vocab)} tokens, which {_NUM_BYTES} bytes and the {len(merges)} merges of "
            "merges.txt do not make: get both files again"
        )
    try:
        return byte_level_bpe(tokenizers.models.BPE(vocab=vocab, merges=merges))
    except Exception as error:
        raise CheckpointError(f"vocab.json and merges.txt of {path} do not fit ({error}): get both again") from error


def _add_tokens(backend: "tokenizers.Tokenizer", entries: Mapping[str, Any], path: pathlib.Path) -> None:
    """Adds the entries of `added_tokens_decoder`, id to properties, which must land on their ids."""
    import tokenizers

    for key, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        token = tokenizers.AddedToken(**{name: entry[name] for name in _PROPERTIES if name in entry})
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if (actual := backend.token_to_id(token.content)) != int(key):
            raise CheckpointError(
                f"{path / 'tokenizer_config.json'} gives {token.content!r} the id {key}, but it falls on {actual}: "
                "get the folder's files again, all of one model"
            )


def _check_tokens(backend: "tokenizers.Tokenizer", config: Mapping[str, Any], path: pathlib.Path) -> None:
    for key in ("pad_token", "eos_token"):
        if not config.get(key):
            raise CheckpointError(f"{path / 'tokenizer_config.json'} has no {key}: name the folder of a Qwen-VL model")
    needed = (*_NEEDED, _name(config["pad_token"]), _name(config["eos_token"]))
    if missing := [token for token in needed if backend.token_to_id(token) is None]:
        raise CheckpointError(f"the tokenizer of {path} lacks {', '.join(missing)}: name the folder of a Qwen-VL model")


def _check_ids(backend: "tokenizers.Tokenizer", path: pathlib.Path) -> None:
    size = backend.get_vocab_size(with_added_tokens=True)
    if any(backend.id_to_token(i) is None for i in range(size)):
        raise CheckpointError(f"the {size} token ids of {path} have gaps: get its files again, all of one model")


def _chat_template(path: pathlib.Path, in_config: str | None, needed: bool) -> str:
    if (file := path / "chat_template.jinja").is_file():
        return _read(file)
    template = _read_json(file).get("chat_template") if (file := path / "chat_template.json").is_file() else in_config
    if template is None and not needed:
        return ""
    if not isinstance(template, str):
        raise CheckpointError(f"no chat template in {path}: add chat_template.jinja from the model's repository")
    return template


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: a tokenizer folder needs it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path} ({error}): get the file again") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): get the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object: get the file again")
    return content


def _fields(token: "tokenizers.AddedToken") -> dict[str, Any]:
    return dict(zip(_PROPERTIES, operator.attrgetter(*_PROPERTIES)(token)))


def _name(token: str | Mapping[str, Any]) -> str:
    """A token of the config, which older files give by name and newer ones with its properties."""
    return token if isinstance(token, str) else token["content"]
