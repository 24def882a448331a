"""Opening a backbone: from a folder of weights or the name of a size to a configuration, a tokenizer and parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jaxvla.config import local_path
from jaxvla.data.tokenizer import TINY, Tokenizer, load_tokenizer
from jaxvla.errors import ConfigError
from jaxvla.models.module import Params
from jaxvla.models.qwen3_vl import config as qwen3_vl
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.tokens import add_tokens
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which backbone; the keys of config.backbone in configs/train_config.py.

    Attributes:
        path: a folder in Hugging Face's layout, with weights and tokenizer; its weights are where training starts.
        preset: without a path, a size of `jaxvla.models.qwen3_vl.config.PRESETS` whose weights are drawn at random,
            with the small tokenizer of the package.
        token_init: how the rows of new tokens start, see `jaxvla.models.qwen3_vl.tokens.add_tokens`.
        position_mode, dtype, remat, attention: see `Qwen3VLConfig`.

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

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.preset):
            given = "both are given" if self.path else "neither is given"
            raise ConfigError(
                f"config.backbone needs a path or a preset, and {given}: set --config.backbone.path to the folder of a "
                "Qwen3-VL model in Hugging Face's layout (config.json, model.safetensors, tokenizer, chat template), "
                "such as a download of Qwen/Qwen3-VL-2B-Instruct; or set a preset with random weights, such as tiny"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """What a training run needs of its backbone.

    Attributes:
        model: sizes and options.
        tokenizer: with the tokens that were added.
        load: (shardings nested as the parameters) -> parameters; None where they are drawn at random.
    """

    model: Qwen3VLConfig
    tokenizer: Tokenizer
    load: Callable[[Params], Params] | None


def open_backbone(config: BackboneConfig, new_tokens: Sequence[str]) -> Backbone:
    """Reads sizes and tokenizer, and adds tokens to both; reads no weights yet.

    Raises:
        ConfigError: an unknown preset or initialisation.
        CheckpointError, WeightsError: the folder is missing, damaged or of another kind of model.
    """
    options = {"position_mode": config.position_mode, "dtype": config.dtype, "remat": config.remat}
    options["attention"] = config.attention
    if not config.path:
        model, plain = qwen3_vl.preset(config.preset), load_tokenizer(TINY)
    else:
        folder = local_path(config.path)
        model, plain = qwen3_vl.from_hf(read_hf_config(folder), str(folder)), load_tokenizer(folder)
    model = dataclasses.replace(model, **options)
    tokenizer = plain.with_added_tokens(new_tokens)
    rows = max(model.text.vocab_size, tokenizer.vocab_size)
    grown = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=rows))
    if not config.path:
        return Backbone(grown, tokenizer, None)
    missing = {name: config.token_init for name in new_tokens if name not in plain.added_tokens}

    def load(shardings: Mapping[str, object]) -> Params:
        params = load_hf(folder, model, shardings)
        return add_tokens(params, model, missing, tokenizer.encode, plain.vocab_size)[0]

    return Backbone(grown, tokenizer, load)
