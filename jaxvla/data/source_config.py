"""Which data: the keys of configs/data_config.py."""

import dataclasses
import math
from collections.abc import Collection

from jaxvla.data import standardizing
from jaxvla.data.formats import lerobot_meta, rlds
from jaxvla.data.formats.split_slices import SplitSlice
from jaxvla.data.formats.standard import Standardize
from jaxvla.data.oxe import registry
from jaxvla.data.oxe.registry import VIEWS, OXEDataset
from jaxvla.data.schema import CAMERA_MASK, PROPRIO
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError

FORMATS = ("bridge_tfrecord", "rlds", "lerobot")
_STEP_KEYS = {"action_key": "action", "proprio_key": "proprio", "language_key": "language"}
_OF_REGISTRY = ("variant", "views")
# The keys that say something of some formats only.
_OF_FORMATS = {
    **dict.fromkeys(("tfds_name", "language_key", "standardization", *_OF_REGISTRY), ("rlds",)),
    **dict.fromkeys(("train_split", "val_split", "action_key", "proprio_key"), ("rlds", "lerobot")),
    **dict.fromkeys(("episodes", "exclude_episodes"), ("lerobot",)),
}


def check_image_size(where: str, size: tuple[int, ...]) -> None:
    """Raises ConfigError unless `size` is (height, width), or () for the size in which images come."""
    if len(size) not in (0, 2) or any(side < 1 for side in size):
        raise ConfigError(f"{where}.image_size must be (height, width) or (), not {size}")


def _check_cameras(where: str, cameras: Collection[str], kind: str) -> None:
    """Raises ConfigError unless `cameras` are names by which batches can hold images; RLDS tells later what it has."""
    if not cameras and kind != "rlds":
        raise ConfigError(f"{where} is empty: name at least one, such as images0")
    if taken := {"", PROPRIO, CAMERA_MASK}.intersection(cameras):
        raise ConfigError(f"{where} cannot have the name {taken.pop()!r}: take another, such as images0")


def _check_parts(where: str, config: "SourceConfig") -> None:
    """Raises ConfigError for numbers that name no part of the trajectories or of their steps."""
    if not 0 < config.trajectory_share <= 1:
        raise ConfigError(f"{where}.trajectory_share must lie in (0, 1], not {config.trajectory_share}")
    for name in ("max_trajectories", "subset_seed", "drop_first", "no_op_below"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{where}.{name} must be 0 or more, not {getattr(config, name)}")


def _check_of_formats(where: str, config: "SourceConfig") -> None:
    """Raises ConfigError for keys of some formats that say nothing, or contradict each other."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for option, formats in _OF_FORMATS.items():
        if config.format not in formats and getattr(config, option) != defaults[option]:
            raise ConfigError(f"{where}.{option} has no effect with format {config.format!r}; leave it as it was")
    without = f"with standardization {config.standardization!r}"
    for options, useless, why in (
        (tuple(_STEP_KEYS), config.standardization, f"{without}, which reads features of its own"),
        (_OF_REGISTRY, config.dataset is None, f"{without}, which is no dataset of Open X-Embodiment"),
    ):
        for option in options if useless else ():
            if getattr(config, option) != defaults[option]:
                raise ConfigError(f"{where}.{option} has no effect {why}; leave it as it was")
    SplitSlice.parse(config.train_split, f"{where}.train_split")
    if config.val_split:
        SplitSlice.parse(config.val_split, f"{where}.val_split")
    if config.val_split and config.validation_share:
        raise ConfigError(
            f"{where}.val_split={config.val_split!r} and validation_share={config.validation_share} both say what is "
            "held out: leave one as it was"
        )
    for option in ("episodes", "exclude_episodes"):
        lerobot_meta.parse_choice(getattr(config, option), f"{where}.{option}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which files; the keys of configs/data_config.py, where they are explained.

    Where nothing is given, `cameras` of TFRecords are images0, and those of a dataset of Open X-Embodiment the
    registry's, as its `actions` and its `action_mask`.
    """

    format: str
    data_path: str
    include: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[str, ...] = ()
    sample_weights: tuple[float, ...] = ()
    cameras: dict[str, str] | None = None
    image_size: tuple[int, ...] = ()
    action_mask: tuple[bool, ...] = ()
    actions: ActionConvention = dataclasses.field(default_factory=ActionConvention)
    control_frequency: float = 0.0
    reasoning_path: str = "reasoning.sqlite"
    max_mismatched: float = 0.1
    max_skipped: float = 0.1
    validation_share: float = 0.0
    max_trajectories: int = 0
    trajectory_share: float = 1.0
    subset_seed: int = 0
    drop_first: int = 0
    no_op_below: float = 0.0
    action_key: str = rlds.StepKeys.action
    proprio_key: str = rlds.StepKeys.proprio
    language_key: str = rlds.StepKeys.language
    standardization: str = ""
    variant: str = ""
    views: tuple[str, ...] = VIEWS
    tfds_name: str = ""
    train_split: str = "train"
    val_split: str = ""
    statistics_path: str = ""
    statistics_name: str = ""
    episodes: str = ""
    exclude_episodes: str = ""
    frame_cache: str = ""

    def __post_init__(self) -> None:
        where = "bridgedata_config"
        self._fill_in(where)
        if self.format not in FORMATS:
            raise ConfigError(f"{where}.format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if not self.data_path:
            raise ConfigError(f"{where}.data_path is empty: give the folder of the data, as --config.data_path=FOLDER")
        _check_cameras(f"{where}.cameras", self.cameras, self.format)
        check_image_size(where, self.image_size)
        if self.format == "bridge_tfrecord" and not (self.include and all(self.include)):
            raise ConfigError(f"{where}.include needs groups of glob patterns, such as (('**',),), not {self.include}")
        groups = len(self.include) if self.format == "bridge_tfrecord" else 1
        if self.sample_weights and len(self.sample_weights) != groups:
            raise ConfigError(f"{where}.sample_weights has {len(self.sample_weights)} entries for {groups} groups")
        if any(not weight > 0 for weight in self.sample_weights):
            raise ConfigError(f"{where}.sample_weights must be positive, not {self.sample_weights}")
        if not 0 <= self.control_frequency < math.inf:
            raise ConfigError(
                f"{where}.control_frequency must be in Hz, or 0 (not known), not {self.control_frequency}"
            )
        for name in ("max_mismatched", "max_skipped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{where}.{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"{where}.validation_share must lie in [0, 1), not {self.validation_share}")
        _check_parts(where, self)
        if self.statistics_name and not self.statistics_path:
            raise ConfigError(f"{where}.statistics_name={self.statistics_name!r} has no effect without statistics_path")
        _check_of_formats(where, self)

    @property
    def step_keys(self) -> rlds.StepKeys:
        """The names of an RLDS dataset's features."""
        return rlds.StepKeys(**{name: getattr(self, option) for option, name in _STEP_KEYS.items()})

    @property
    def dataset(self) -> OXEDataset | None:
        """That of Open X-Embodiment whose standardization is named; None where it is a function of one's own, or none.

        Raises:
            ConfigError: there is no such dataset.
        """
        if not self.standardization or standardizing.is_own(self.standardization):
            return None
        try:
            return registry.find(self.standardization)
        except ConfigError as error:
            raise ConfigError(
                f"bridgedata_config.standardization: {error} (a function of your own is file.py:function)"
            ) from error

    @property
    def is_known(self) -> bool:
        """Whether what is said of the actions is what the registry says of the dataset, and nobody of this data."""
        return self.dataset is not None and self.actions == self.dataset.convention

    @property
    def standardize(self) -> Standardize | None:
        """What makes actions, states and instructions of the features; None where `step_keys` name them.

        Raises:
            ConfigError: there is no such function.
        """
        return standardizing.find(self.standardization, self.variant) if self.standardization else None

    def _fill_in(self, where: str) -> None:
        """Takes what nobody gave from the registry or, of TFRecords, from the habits of BridgeData."""
        registry.check_variant(self.variant or None)
        if not set(self.views) <= set(VIEWS) or not self.views:
            raise ConfigError(f"{where}.views must be of {', '.join(VIEWS)}, not {self.views}")
        filled, dataset = {}, self.dataset
        if dataset is not None:
            none = ActionConvention()
            said = {f.name: getattr(self.actions, f.name) for f in dataclasses.fields(none)}
            said = {name: value for name, value in said.items() if value != getattr(none, name)}
            filled = {
                "actions": dataclasses.replace(dataset.convention, **said),
                "action_mask": self.action_mask or dataset.action_encoding.normalization_mask,
                "cameras": self.cameras or dataset.cameras.named(self.views),
            }
            if not filled["cameras"]:
                raise ConfigError(
                    f"{dataset.name} has none of {where}.views={self.views}: add another, or leave it out"
                )
        elif self.cameras is None:
            filled = {"cameras": {} if self.format == "rlds" else {"images0": "images0"}}
        for name, value in filled.items():
            object.__setattr__(self, name, value)
