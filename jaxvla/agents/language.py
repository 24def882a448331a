"""Instructions as arrays: encoders behind one interface, which see every text once and no batch.

    learned       token ids of the small tokenizer of the package; an encoder within the agent learns to read them
    tokens        token ids of a language model's tokenizer, of the text as it is and a line break, for SmolVLA
    openvla       token ids of a language model's tokenizer, of OpenVLA's question about the text; openvla_v01, of its
                  first version's
    qwen3_vl      vectors of a frozen Qwen3-VL: means of the last hidden states of its text decoder, of length 1
    precomputed   vectors that are given: with the data (RLDS), or in a file

Axis letters: n texts, m texts of a store, l columns of an `InstructionSpec`.
"""

import base64
import dataclasses
import functools
import hashlib
import pathlib
import reprlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Float32, Num

from jaxvla.config import local_path
from jaxvla.data.formats import sidecar
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.data.text.instructions import InstructionTable, open_table, rows_of
from jaxvla.data.text.tokenizer import TINY, Tokenizer, load_tokenizer, tokenizer_from_files
from jaxvla.data.text.wordings import WORDINGS
from jaxvla.errors import ConfigError, DataError
from jaxvla.models.module import Params, compute_dtype, graph_of
from jaxvla.models.qwen3_vl.config import from_hf
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.sentences import sentence_vectors
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config

OVERFLOWS = ("error", "truncate")
# A checkpoint holds the given vectors of so many texts at most.
MAX_KEPT_TEXTS = 10_000


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """How instructions are encoded; the keys of config.language in configs/train_config.py.

    Attributes:
        encoder: "learned", "tokens", "openvla", "openvla_v01", "qwen3_vl" or "precomputed", see the module.
        path: of qwen3_vl the folder of weights in Hugging Face's layout; of tokens and openvla a folder with a
            tokenizer, or empty for the small one of the package; of precomputed an .npz file with the arrays texts
            (str [m]) and vectors (float [m, l]), or empty for the vectors that the data carries.
        max_length: of learned and tokens, the most tokens of an instruction.
        on_overflow: what becomes of an instruction of more tokens: an "error", or "truncate" cuts off its end.
        prompt: of qwen3_vl, what the decoder reads before each instruction; it does not enter the mean.
        dtype: of qwen3_vl, in which the decoder computes.

    Raises:
        ConfigError: an unknown encoder, or a path that it lacks or does not take.
    """

    encoder: str = "learned"
    path: str = ""
    max_length: int = 64
    on_overflow: str = "error"
    prompt: str = "Instruction:"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.encoder not in _KINDS:
            raise ConfigError(f"no language.encoder named {self.encoder!r}; there are: {', '.join(_KINDS)}")
        if self.encoder == "learned" and self.path:
            raise ConfigError("language.path has no effect with language.encoder 'learned'; empty it, or change that")
        if self.encoder == "qwen3_vl" and not self.path:
            raise ConfigError(
                "language.encoder 'qwen3_vl' needs weights: set --config.language.path to the folder of a Qwen3-VL "
                "model in Hugging Face's layout"
            )
        if self.max_length < 1:
            raise ConfigError(f"language.max_length must be at least 1, not {self.max_length}")
        if self.on_overflow not in OVERFLOWS:
            raise ConfigError(f"language.on_overflow must be one of {', '.join(OVERFLOWS)}, not {self.on_overflow!r}")
        compute_dtype(self.dtype)


@runtime_checkable
class Language(Protocol):
    """Texts to instructions, as agents read them."""

    @property
    def spec(self) -> InstructionSpec:
        """The sizes of the instructions."""

    def table(self, mixture: Mixture) -> InstructionTable:
        """All annotations of a split, encoded once and kept beside it.

        Raises:
            DataError: an annotation cannot be encoded.
        """

    def encode(self, texts: Sequence[str]) -> Num[np.ndarray, "n l"]:
        """Instructions of these texts, such as a robot is given.

        Raises:
            DataError: a text cannot be encoded.
        """

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, plain JSON values; the inverse is `language_from_json`."""


def open_language(config: LanguageConfig, splits: Sequence[Mixture]) -> Language:
    """The language of a configuration; reads no weights yet.

    Args:
        config: which.
        splits: those that it is for, whose own vectors are used where the configuration says so.

    Raises:
        ConfigError, CheckpointError, WeightsError: a folder is missing, or holds another kind of model.
        DataError: vectors are missing or damaged.
    """
    match config.encoder:
        case "learned":
            return TokenLanguage(load_tokenizer(TINY), config.max_length, config.on_overflow)
        case "tokens" | "openvla" | "openvla_v01":
            tokenizer = load_tokenizer(local_path(config.path or TINY), chats=False)
            return TokenLanguage(tokenizer, config.max_length, config.on_overflow, config.encoder)
        case "qwen3_vl":
            folder = local_path(config.path).absolute()
            model = from_hf(read_hf_config(folder), str(folder))
            return DecoderLanguage(str(folder), config.prompt, config.dtype, model.text.hidden_size)
        case _:
            return _vectors_of_file(config.path) if config.path else _vectors_of_data(splits)


def language_from_json(values: Mapping[str, Any]) -> Language:
    """The inverse of `Language.to_json`."""
    return _KINDS[values["encoder"]].from_json(values)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLanguage:
    """Token ids of texts.

    Attributes:
        tokenizer: gives them.
        max_length: the most that a text may have.
        on_overflow: what becomes of a text of more: an "error", or "truncate".
        encoder: "learned" encodes words without regard to case and spacing, for a vocabulary that a small model has to
            learn; "tokens" the text as it is and a line break, for a language model that has learned its own;
            "openvla" and "openvla_v01" a question about it.
    """

    tokenizer: Tokenizer
    max_length: int
    on_overflow: str = "error"
    encoder: str = "learned"

    @property
    def spec(self) -> InstructionSpec:
        """See `Language`."""
        return InstructionSpec(self.max_length, self.tokenizer.vocab_size)

    def table(self, mixture: Mixture) -> InstructionTable:
        """See `Language`."""
        backend = hashlib.sha256(self.tokenizer.backend.to_str().encode()).hexdigest()
        return open_table(mixture, self.spec, self.encode, (self.encoder, self.on_overflow, backend))

    def encode(self, texts: Sequence[str]) -> Num[np.ndarray, "n l"]:
        """See `Language`; a text of more than `max_length` tokens is refused where it is not to be cut."""
        rows = [self.tokenizer.encode(WORDINGS[self.encoder](text)) for text in texts]
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if self.on_overflow == "error" and len(rows[longest]) > self.max_length:
            raise DataError(
                f"the instruction {reprlib.repr(texts[longest])} has {len(rows[longest])} tokens, more than "
                f"{self.max_length}: shorten it, or train with config.language.max_length={len(rows[longest])}"
            )
        ids_nl = np.tile(self.spec.unlabelled(), (len(rows), 1))
        for ids_l, row in zip(ids_nl, rows):
            ids_l[: len(row)] = row[: self.max_length]
        return ids_nl

    def to_json(self) -> dict[str, Any]:
        """See `Language`; holds the tokenizer."""
        own = {"encoder": self.encoder, "max_length": self.max_length, "on_overflow": self.on_overflow}
        return {**own, "tokenizer": self.tokenizer.files()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TokenLanguage":
        """The inverse of `to_json`; earlier checkpoints of "learned" do not say what becomes of long texts."""
        tokenizer = tokenizer_from_files(values["tokenizer"], chats=False)
        return cls(tokenizer, values["max_length"], values.get("on_overflow", "error"), values["encoder"])


class _Decoder(NamedTuple):
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: Params


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderLanguage:
    """Means of hidden states of a Qwen3-VL, scaled to length 1 as sentence embeddings are.

    Their own length grows with the width and with the scale of the final norm, and the first steps of FiLM with it. The
    weights are read when the first text is encoded, and stay as long as this object.

    Attributes:
        folder: of the weights.
        prompt, dtype: see `LanguageConfig`.
        width: of the decoder.
    """

    folder: str
    prompt: str
    dtype: str
    width: int

    @property
    def spec(self) -> InstructionSpec:
        """See `Language`."""
        return InstructionSpec(self.width)

    def table(self, mixture: Mixture) -> InstructionTable:
        """See `Language`; encoded again when a file of the folder changed."""
        files = sorted(path for path in pathlib.Path(self.folder).iterdir() if path.is_file())
        weights = sidecar.fingerprint(files)
        return open_table(mixture, self.spec, self.encode, ("qwen3_vl", weights, self.prompt, self.dtype))

    def encode(self, texts: Sequence[str]) -> Num[np.ndarray, "n l"]:
        """See `Language`."""
        tokenizer, graphdef, params = self._decoder
        rows = [tokenizer.encode(f" {' '.join(text.split())}") for text in texts]
        vectors_nl = sentence_vectors(graphdef, params, tokenizer.encode(self.prompt), rows)
        return vectors_nl / np.linalg.norm(vectors_nl, axis=1, keepdims=True)

    @functools.cached_property
    def _decoder(self) -> _Decoder:
        model = dataclasses.replace(from_hf(read_hf_config(self.folder), self.folder), dtype=self.dtype)
        params = load_hf(self.folder, model, dtype=compute_dtype(self.dtype))
        return _Decoder(load_tokenizer(self.folder), graph_of(lambda rngs: Qwen3VL(model, rngs)), params)

    def to_json(self) -> dict[str, Any]:
        """See `Language`; the weights stay where they are."""
        return {"encoder": "qwen3_vl", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DecoderLanguage":
        """The inverse of `to_json`."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLanguage:
    """Vectors of known texts.

    Attributes:
        source: where they are from, for error messages.
        texts: m different ones.
        vectors_ml: theirs.
    """

    source: str
    texts: tuple[str, ...]
    vectors_ml: Float32[np.ndarray, "m l"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", frozenset(self.texts))

    @property
    def spec(self) -> InstructionSpec:
        """See `Language`."""
        return InstructionSpec(self.vectors_ml.shape[1])

    def table(self, mixture: Mixture) -> InstructionTable:
        """See `Language`; nothing is computed, so nothing is kept."""
        annotations = mixture.annotations()
        self._check(annotations)
        values_ml = np.concatenate([self.vectors_ml, self.spec.unlabelled()[None]])
        return InstructionTable(values_ml, rows_of(annotations, self.texts))

    def encode(self, texts: Sequence[str]) -> Num[np.ndarray, "n l"]:
        """See `Language`."""
        self._check(texts)
        return self.vectors_ml[rows_of(texts, self.texts)[:-1]]

    def _check(self, texts: Sequence[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            others = f" and {len(missing) - 1} others have" if len(missing) > 1 else " has"
            raise DataError(
                f"{reprlib.repr(missing[0])}{others} no vector among the {len(self.texts)} of {self.source}: "
                "add it there, or give a policy the vector itself"
            )

    def to_json(self) -> dict[str, Any]:
        """See `Language`; holds the vectors unless they are more than `MAX_KEPT_TEXTS`."""
        kept = len(self.texts) if len(self.texts) <= MAX_KEPT_TEXTS else 0
        return {
            "encoder": "precomputed",
            "source": self.source,
            "length": self.spec.length,
            "texts": list(self.texts[:kept]),
            "vectors": base64.b64encode(self.vectors_ml[:kept].tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StoredLanguage":
        """The inverse of `to_json`."""
        flat = np.frombuffer(base64.b64decode(values["vectors"]), np.float32)
        return cls(values["source"], tuple(values["texts"]), flat.reshape(-1, values["length"]))


def check_tokens(folder: pathlib.Path, spec: BatchSpec) -> None:
    """Raises ConfigError where weights come with another tokenizer than that of the instructions.

    Args:
        folder: of the weights; it may have no tokenizer.
        spec: whose instructions.
    """
    if not (folder / "tokenizer.json").is_file():
        return
    own = load_tokenizer(folder, chats=False).vocab_size
    if own != spec.instruction.vocab_size:
        raise ConfigError(
            f"the weights of {folder} come with a tokenizer of {own} tokens, but config.language has one of "
            f"{spec.instruction.vocab_size}: set --config.language.path={folder}"
        )


def _vectors_of_data(splits: Sequence[Mixture]) -> StoredLanguage:
    """The vectors that the data carries; a text that comes again has the vector of its first time."""
    found: dict[str, np.ndarray] = {}
    for dataset in (dataset for mixture in splits for dataset in mixture.datasets):
        if not dataset.source.vectors.size:
            raise DataError(
                f"{dataset.source.paths[0]} has no language vectors: set config.language.path to an .npz file of texts "
                "and vectors, or choose another config.language.encoder"
            )
        if dataset.source.paraphrases:
            raise ConfigError(
                f"{dataset.source.paths[0]} has no language vectors of paraphrases: set config.language.path to an "
                ".npz file of all texts, or config.data.tasks.rephrase to 0"
            )
        for text, vector_l in zip(dataset.annotations(), dataset.source.vectors):
            found.setdefault(text, vector_l)
        if len(widths := {len(vector_l) for vector_l in found.values()}) > 1:
            raise DataError(
                f"{dataset.source.paths[0]} and others have language vectors of {sorted(widths)} values, which do not "
                "go together: choose another config.language.encoder"
            )
    return StoredLanguage("the data", tuple(found), np.stack(list(found.values())))


def _vectors_of_file(path: str) -> StoredLanguage:
    try:
        with np.load(local_path(path), allow_pickle=False) as stored:
            texts, vectors_ml = stored["texts"], stored["vectors"]
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error}): config.language.path must be an .npz file with texts and vectors"
        ) from error
    if texts.dtype.kind != "U" or vectors_ml.dtype.kind != "f" or texts.shape != vectors_ml.shape[:-1]:
        raise DataError(
            f"{path} holds texts {texts.dtype}{list(texts.shape)} and vectors {vectors_ml.dtype}"
            f"{list(vectors_ml.shape)}, not str[m] and float[m, l]"
        )
    if len(set(texts.tolist())) < len(texts) or not np.isfinite(vectors_ml).all():
        raise DataError(f"{path} holds a text twice, or a value that is not finite: mend it")
    return StoredLanguage(path, tuple(texts.tolist()), vectors_ml.astype(np.float32))


_KINDS = dict.fromkeys(WORDINGS, TokenLanguage) | {"qwen3_vl": DecoderLanguage, "precomputed": StoredLanguage}
