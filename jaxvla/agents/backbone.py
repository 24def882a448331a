"""Opening a backbone: from a folder of weights or the name of a size to a configuration, a tokenizer and parameters."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvla.config import from_mapping, local_path
from jaxvla.data.text.tokenizer import TINY, Tokenizer, load_tokenizer
from jaxvla.errors import ConfigError
from jaxvla.models.lora import LORA, LoraConfig, merge, read_base
from jaxvla.models.module import Params, compute_dtype
from jaxvla.models.qwen3_vl import config as qwen3_vl
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.tokens import add_tokens
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config

# Presets whose weights ship with the package, and what the same sizes are called without them.
SHIPPED = {"tiny": pathlib.Path(qwen3_vl.__file__).parent / "assets" / "tiny"}
RANDOM = {"tiny_random": "tiny"}


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which backbone; the keys of config.backbone in configs/train_config.py.

    Attributes:
        path: a folder in Hugging Face's layout, with weights and tokenizer; its weights are where training starts.
        preset: without a path, "tiny", a small model that ships with the package and has seen the sample world;
            "tiny_random", the same sizes; or another size of `jaxvla.models.qwen3_vl.config.PRESETS`. The weights of
            these are drawn at random, and they have the package's small tokenizer.
        token_init: how the rows of new tokens start, see `jaxvla.models.qwen3_vl.tokens.add_tokens`.
        position_mode, dtype, remat, attention: see `Qwen3VLConfig`.
        lora: adapters that train in place of the parameters, see `LoraConfig`; those are then held in `dtype`.

    Raises:
        ConfigError: neither a path nor a preset is given, or both.
    """

    path: str = ""
    preset: str = ""
    token_init: str = "copy:<<"
    position_mode: str = "mrope"
    dtype: str = "bfloat16"
    remat: str = "block"
    attention: str = "xla"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.preset):
            given = "both are given" if self.path else "neither is given"
            raise ConfigError(
                f"config.backbone needs a path or a preset, and {given}: set --config.backbone.path to the folder of a "
                "Qwen3-VL model in Hugging Face's layout (config.json, model.safetensors, tokenizer, chat template), "
                "such as a download of Qwen/Qwen3-VL-2B-Instruct; or set a preset, such as tiny_random"
            )

    @property
    def folder(self) -> pathlib.Path | None:
        """Where the weights are that training starts from; None where they are drawn at random."""
        return local_path(self.path) if self.path else SHIPPED.get(self.preset)


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """What a training run needs of its backbone.

    Attributes:
        model: sizes and options.
        tokenizer: with the tokens that were added.
        load: (shardings nested as the parameters) -> parameters, without adapters, which are not read from there; None
            where they are drawn at random.
        lora: adapters of the model.
    """

    model: Qwen3VLConfig
    tokenizer: Tokenizer
    load: Callable[[Params], Params] | None
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def agent_kwargs(self) -> dict[str, Any]:
        """What an agent with a backbone is told of it, as plain values; of adapters only where there are any."""
        lora = {LORA: dataclasses.asdict(self.lora)} if self.lora.rank else {}
        return {"backbone": dataclasses.asdict(self.model), **lora}


def open_backbone(config: BackboneConfig, new_tokens: Sequence[str]) -> Backbone:
    """Reads sizes and tokenizer, and adds tokens to both; reads no weights yet.

    Raises:
        ConfigError: an unknown preset or initialisation.
        CheckpointError, WeightsError: the folder is missing, damaged or of another kind of model.
    """
    options = {"position_mode": config.position_mode, "dtype": config.dtype, "remat": config.remat}
    options["attention"] = config.attention
    folder = config.folder
    if folder is None:
        model, plain = qwen3_vl.preset(RANDOM.get(config.preset, config.preset)), load_tokenizer(TINY)
    else:
        model, plain = qwen3_vl.from_hf(read_hf_config(folder), str(folder)), load_tokenizer(folder)
    model = dataclasses.replace(model, **options)
    tokenizer = plain.with_added_tokens(new_tokens)
    rows = max(model.text.vocab_size, tokenizer.vocab_size)
    grown = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=rows))
    if folder is None:
        return Backbone(grown, tokenizer, None, config.lora)
    missing = {name: config.token_init for name in new_tokens if name not in plain.added_tokens}
    dtype = compute_dtype(config.dtype) if config.lora.rank else "float32"

    def load(shardings: Mapping[str, object]) -> Params:
        def read(at: Params) -> Params:
            params = load_hf(folder, model, at, dtype)
            return add_tokens(params, model, missing, tokenizer.encode, plain.vocab_size)[0]

        return read_base(read, shardings, config.lora)

    return Backbone(grown, tokenizer, load, config.lora)


def merge_adapters(agent_kwargs: Mapping[str, Any], params: Params, dtype: str = "") -> tuple[dict[str, Any], Params]:
    """Settings and parameters of an agent, as if it had been trained without adapters.

    Their product is added to the kernels once: decisions then cost what they cost without adapters.

    Args:
        agent_kwargs: with those of `lora` where there are adapters, as `Backbone.agent_kwargs` gives them.
        params: of the agent; the adapters are a module of them, or one of the backbone.
        dtype: of the merged kernels; that of the frozen ones where it is empty.
    """
    plain = {key: value for key, value in agent_kwargs.items() if key != LORA}
    if len(plain) == len(agent_kwargs):
        return plain, params
    lora = from_mapping(LoraConfig, agent_kwargs[LORA], f"agent_kwargs.{LORA}")
    if "backbone" in params:
        return plain, {**params, "backbone": merge(params["backbone"], lora, dtype or None)}
    return plain, merge(params, lora, dtype or None)
