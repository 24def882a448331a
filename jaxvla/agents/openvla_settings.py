"""The settings of openvla: what is trained, how actions are made, and what batches must be for it."""

import dataclasses

from jaxvla.agents.openvla_text import TokenIds
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.layers import INITIALIZER_RANGE
from jaxvla.models.lora import LoraConfig
from jaxvla.models.prismatic.config import HeadConfig, PrismaticConfig
from jaxvla.ops.action_tokens import NUM_BINS

# The modules that training leaves as they are, by what it is asked to train; with "lora" all but the adapters.
FROZEN = {
    "full": (),
    "frozen_vision": ("vision",),
    "last_layer": ("vision", "projector", "llm/layers", "llm/norm"),
    "sandwich": ("llm/layers", "llm/norm"),
    "projector": ("vision", "llm"),
    "lora": ("vision", "projector", "llm"),
}
# Every linear layer of the published model that computes something; the patches' too, whose convolution is one here.
LORA_TARGETS = r"^(vision|projector|llm)/(?!.*unread/).*kernel$"


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """OpenVLA-OFT: whole chunks of actions in one pass, as numbers, in place of a token after the other.

    What it adds to the model is trained whatever `train_what` says.

    Attributes:
        enabled: whether it is done.
        proprio: the robot's state is read, too.
        film: the words modulate the blocks of the vision towers (OFT+).
    """

    enabled: bool = False
    proprio: bool = True
    film: bool = False


@dataclasses.dataclass(frozen=True)
class OpenVLAConfig:
    """The `agent_kwargs` of openvla.

    Attributes:
        model: sizes and options.
        tokens: see `TokenIds`.
        num_cameras: how many the data must have, of the published models 1, and 2 or 3 of OFT; 0 for any number, whose
            images stand one after the other.
        train_what: "full"; "lora", adapters alone; "frozen_vision", all but the towers; "last_layer", the embeddings,
            the last layer and the head of the language model; "sandwich", these with towers and projector; "projector".
        path: a folder of OpenVLA in Hugging Face's layout, or a .pt checkpoint of the original training, whose weights
            training starts from; empty where all is drawn.
        initializer_range: the standard deviation of the weights of towers and language model that are drawn. For
            layers of a hundred units 0.02 is too little to begin with: what an image says is lost on the way.
        lora: the adapters of "lora".
        parallel: see `ParallelConfig`.

    Raises:
        ConfigError: an unknown `train_what`, adapters that it does not go with, or a part of the model that other
            settings decide on.
    """

    model: PrismaticConfig
    tokens: TokenIds = dataclasses.field(default_factory=TokenIds)
    num_cameras: int = 1
    train_what: str = "full"
    path: str = ""
    initializer_range: float = INITIALIZER_RANGE
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(targets=LORA_TARGETS))
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.train_what not in FROZEN:
            raise ConfigError(f"train_what must be one of {', '.join(FROZEN)}, not {self.train_what!r}")
        if not self.initializer_range > 0:
            raise ConfigError(f"initializer_range must be above 0, not {self.initializer_range}")
        if self.lora.rank and self.train_what != "lora":
            raise ConfigError(f"train_what {self.train_what!r} has no adapters: set it to 'lora', or lora.rank to 0")
        apart = self.train_what in ("last_layer", "sandwich")
        if self.model.last_layer_apart and not apart:
            raise ConfigError(f"train_what {self.train_what!r} decides on model.last_layer_apart: leave that out")
        if not self.parallel.enabled and (self.model.head is not None or self.model.film):
            raise ConfigError("parallel decides on model.head and model.film: leave them out, or set parallel.enabled")
        object.__setattr__(self, "model", dataclasses.replace(self.model, last_layer_apart=apart))


def with_head(config: OpenVLAConfig, spec: BatchSpec) -> OpenVLAConfig:
    """The settings with the parts of the model that `parallel` adds, of the sizes of batches; as they are without."""
    if not config.parallel.enabled:
        return config
    head = HeadConfig(spec.action_dim, spec.proprio_dim if config.parallel.proprio else 0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head, film=config.parallel.film))


def check(config: OpenVLAConfig, spec: BatchSpec) -> None:
    """Raises ConfigError unless an agent of these settings can take batches of these sizes."""
    size, vocab_size = config.model.image_size, config.model.text.vocab_size
    if not spec.cameras or config.num_cameras not in (0, len(spec.cameras)):
        raise ConfigError(
            f"config.agent_kwargs.num_cameras is {config.num_cameras}, and the data has "
            f"{', '.join(spec.cameras) or 'no camera'}: name others in its configuration, or change the number; there "
            "are published weights for 1, and with parallel for 2 and 3"
        )
    if spec.several_camera_sets:
        raise ConfigError("openvla hides no missing cameras: mix datasets that have the same ones")
    for camera in spec.cameras:
        if spec.size_of(camera) != (size, size):
            raise ConfigError(
                f"images of {camera} are {spec.size_of(camera)}, but this model sees {(size, size)}: set "
                "config.data.image_size to it"
            )
    if spec.instruction is None or not spec.instruction.vocab_size:
        raise ConfigError("openvla reads prompts as token ids: set config.language.encoder to 'openvla'")
    if spec.instruction.vocab_size > vocab_size:
        raise ConfigError(
            f"the tokenizer has {spec.instruction.vocab_size} tokens, more than the {vocab_size} that the model has "
            "embeddings for: set config.language.path to the folder of its own tokenizer, or "
            "config.agent_kwargs.model.text.vocab_size"
        )
    if spec.obs_horizon != 1:
        raise ConfigError(f"openvla sees the present alone: set config.data.obs_horizon to 1, not {spec.obs_horizon}")
    if config.parallel.enabled and config.parallel.proprio and not spec.proprio_dim:
        raise ConfigError(
            "config.agent_kwargs.parallel.proprio reads the robot's state, and the data has none: set it to False"
        )
    tokens = config.tokens
    if not NUM_BINS <= tokens.actions_end <= vocab_size:
        raise ConfigError(
            f"tokens.actions_end {tokens.actions_end} leaves no {NUM_BINS} tokens of a vocabulary of {vocab_size} below"
        )
    for name in ("first", "space", "end"):
        if not 0 <= getattr(tokens, name) < vocab_size:
            raise ConfigError(f"tokens.{name} {getattr(tokens, name)} is no token of a vocabulary of {vocab_size}")
