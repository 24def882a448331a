"""What clients call the parts of an observation, and what of them is what the policy calls otherwise.

A message is flat here: what is nested has a path, "images/cam_high". The tables are data: a client that has other names
is a row more.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.contract import Contract
from jaxvla.data.schema import PROPRIO
from jaxvla.data.transforms.images import enlarges, size_text
from jaxvla.errors import PolicyError

MAX_PIXELS = 4096 * 4096
MAX_INSTRUCTION = 4096
_WRIST = re.compile("wrist|hand|gripper")
_GOALS = "goals/"


@dataclasses.dataclass(frozen=True)
class ClientKeys:
    """What a kind of client calls things.

    Attributes:
        cameras: paths of its images, in the order in which a policy's cameras take them; "*" is any name.
        state: paths of what makes up the proprio, one behind the other; of paths with "|", whichever is there.
        language: of the instruction.
        channels_first: images are [3, height, width], not [height, width, 3].
        in_order: names do not say where a camera is: the order alone does.
    """

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    language: str
    channels_first: bool = False
    in_order: bool = False

    def found(self, flat: Mapping[str, Any]) -> int:
        """How many of the values of a message are called so."""
        words = (word for path in (*self.state, self.language) for word in path.split("|"))
        return len(self.views(flat)) + sum(word in flat for word in words)

    def views(self, flat: Mapping[str, Any]) -> list[str]:
        """The paths of a message that are its cameras."""
        return [path for pattern in self.cameras for path in flat if fnmatch.fnmatchcase(path, pattern)]


# The policy's own names come first: of equals the first is taken.
OWN = "jaxvla"
CLIENT_KEYS: Mapping[str, ClientKeys] = {
    OWN: ClientKeys(("images[0-9]*",), (PROPRIO,), "language"),
    # https://github.com/Physical-Intelligence/openpi, src/openpi/policies
    "libero": ClientKeys(("observation/image", "observation/wrist_image"), ("observation/state",), "prompt"),
    "droid": ClientKeys(
        ("observation/exterior_image_1_left", "observation/exterior_image_2_left", "observation/wrist_image_left"),
        ("observation/joint_position", "observation/gripper_position"),
        "prompt",
    ),
    "aloha": ClientKeys(
        ("images/cam_high", "images/cam_low", "images/cam_left_wrist", "images/cam_right_wrist"),
        ("state",),
        "prompt",
        channels_first=True,
    ),
    # The names of bridge_dataset.
    "bridge": ClientKeys(("observation/image_[0-9]",), ("observation/state",), "language_instruction", in_order=True),
    "lerobot": ClientKeys(("observation.images.*", "observation.image"), ("observation.state",), "task"),
    "vla-eval": ClientKeys(("images/*",), ("states|state",), "task_description"),
    # https://github.com/starVLA/starVLA: the list of images has become a map of numbers.
    "starvla": ClientKeys(("image/*",), ("state",), "lang", in_order=True),
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a policy must be given, and how much of it.

    Attributes:
        cameras, goals: names of the images that it looks at.
        proprio: whether it reads one.
        told: whether it reads an instruction.
        contract: of its checkpoint.
        overrides: paths of clients, by camera, that somebody gave by hand.
        any_size: images that are smaller than the frames of training are taken.
    """

    cameras: tuple[str, ...]
    goals: tuple[str, ...]
    proprio: bool
    told: bool
    contract: Contract
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    any_size: bool = False


def flatten(message: Mapping[Any, Any]) -> dict[str, Any]:
    """The leaves of nested mappings by path.

    Raises:
        PolicyError: a key is no text, or two paths are the same.
    """
    flat: dict[str, Any] = {}
    todo = [("", message)]
    while todo:
        above, values = todo.pop()
        for key, value in values.items():
            if not isinstance(key, str):
                raise PolicyError(f"the observation has a key that is no text: {key!r:.60}")
            path = f"{above}{key}"
            if isinstance(value, Mapping):
                todo.append((f"{path}/", value))
            elif path in flat:
                raise PolicyError(f"the observation has two values at {path!r}")
            else:
                flat[path] = value
    return flat


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the messages of one client are read.

    Attributes:
        name: of the `CLIENT_KEYS`.
        keys: these.
        cameras: its paths by the policy's names.
        needs: of the policy.
    """

    name: str
    keys: ClientKeys
    cameras: Mapping[str, str]
    needs: Needs

    def __str__(self) -> str:
        views = ", ".join(f"{camera} from {path!r}" for camera, path in self.cameras.items()) or "no cameras"
        return f"keys of {self.name}: {views}"

    def read(self, flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The observation and the task, as `Policy.act` takes them.

        Raises:
            PolicyError: something is missing, or not what it must be.
        """
        needs = self.needs
        goals = {camera: f"{_GOALS}{camera}" for camera in needs.goals}
        state = [_which(path, flat) for path in self.keys.state] if needs.proprio else []
        paths = [*self.cameras.values(), *state, *goals.values(), *([self.keys.language] if needs.told else [])]
        missing = [path for path in paths if path not in flat]
        if missing:
            raise PolicyError(f"the observation lacks {missing[0]!r}; {_came(flat)}, and needed are {_list(paths)}")
        observation = {camera: self._image(camera, path, flat[path]) for camera, path in self.cameras.items()}
        if state:
            observation[PROPRIO] = np.concatenate([_numbers(path, flat[path]) for path in state])
        views = {camera: self._image(camera, path, flat[path]) for camera, path in goals.items() if camera != PROPRIO}
        if PROPRIO in goals:
            views[PROPRIO] = _numbers(goals[PROPRIO], flat[goals[PROPRIO]])
        task = {"goals": views} if goals else {}
        if needs.told:
            task["language"] = _instruction(self.keys.language, flat[self.keys.language])
        return observation, task

    def _image(self, camera: str, path: str, value: Any) -> np.ndarray:
        first = self.keys.channels_first and not path.startswith(_GOALS)
        kind = "uint8[3, height, width]" if first else "uint8[height, width, 3]"
        if not isinstance(value, np.ndarray):
            raise PolicyError(f"{path!r} is a {type(value).__name__}; expected an image, {kind}")
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[0 if first else 2] != 3 or not value.size:
            raise PolicyError(f"{path!r} is {value.dtype}{list(value.shape)}; expected an image, {kind}")
        image = np.ascontiguousarray(value.transpose(1, 2, 0)) if first else value
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise PolicyError(f"{path!r} is of {size_text(image.shape[:2])} pixels, more than {MAX_PIXELS}")
        own = self.needs.contract.cameras.get(camera)
        stored = None if own is None or self.needs.any_size else own.stored_size
        if stored is not None and enlarges(image.shape, stored):
            raise PolicyError(
                f"{path!r} is of {size_text(image.shape[:2])} pixels, but the policy was trained on frames of "
                f"{size_text(stored)}, to which it would be enlarged: send whole frames as the camera gives them, or "
                "start the server with --any_image_size"
            )
        return image


def fit(name: str, needs: Needs, flat: Mapping[str, Any]) -> Reading:
    """How a client's messages are read, of which this is the first.

    A camera of the policy is the client's of the same name; else the next in order, at the wrist where its name says so
    and elsewhere where not.

    Args:
        name: of the `CLIENT_KEYS`; empty for those of which most are there.
        needs: of the policy.
        flat: the message.

    Raises:
        PolicyError: the message has the keys of no known client, or too few cameras.
    """
    own = {**CLIENT_KEYS, OWN: dataclasses.replace(CLIENT_KEYS[OWN], cameras=needs.cameras)}
    name = name or max(own, key=lambda each: own[each].found(flat))
    keys = own[name]
    if not keys.found(flat):
        wanted = [*needs.cameras, *([PROPRIO] if needs.proprio else []), *(["language"] if needs.told else [])]
        raise PolicyError(
            f"{_came(flat)}, which are the keys of no client that is known ({', '.join(own)}); the policy's own are "
            f"{_list([*wanted, *(_GOALS + goal for goal in needs.goals)])}"
        )
    given = {path.split("/")[-1].split(".")[-1]: path for path in keys.views(flat)}
    chosen = {camera: path for camera, path in needs.overrides.items() if camera in needs.cameras}
    chosen |= {camera: given[camera] for camera in needs.cameras if camera in given and camera not in chosen}
    free = [path for path in keys.views(flat) if path not in chosen.values()]
    for camera in (camera for camera in needs.cameras if camera not in chosen):
        path = next((path for path in free if keys.in_order or at_wrist(path) == at_wrist(camera)), None)
        if path is None:
            where = "at the wrist" if at_wrist(camera) else "beside the robot"
            raise PolicyError(
                f"the policy needs an image {where}, its {camera!r}, of {_list(list(needs.cameras))}; {_came(flat)}"
            )
        free.remove(path)
        chosen[camera] = path
    return Reading(name, keys, {camera: chosen[camera] for camera in needs.cameras}, needs)


def at_wrist(name: str) -> bool:
    """Whether a camera's name says that it sits at the wrist."""
    return _WRIST.search(name) is not None


def _which(path: str, flat: Mapping[str, Any]) -> str:
    words = path.split("|")
    return next((word for word in words if word in flat), words[0])


def _numbers(path: str, value: Any) -> np.ndarray:
    if isinstance(value, list | float | int):
        flat = value if isinstance(value, list) else [value]
        if not all(type(number) in (int, float) for number in flat):
            raise PolicyError(f"{path!r} holds something that is no number")
        value = np.array(flat, np.float64)
    if not isinstance(value, np.ndarray | np.number) or value.ndim > 1 or value.dtype.kind not in "iuf":
        kind = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise PolicyError(f"{path!r} is {kind}; expected numbers in robot units, float32[n]")
    return np.atleast_1d(value)


def _instruction(path: str, value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    try:
        text = value.decode() if isinstance(value, bytes) else str(value) if isinstance(value, str) else None
    except UnicodeDecodeError:
        text = None
    if text is None or len(text) > MAX_INSTRUCTION:
        length = f" of {len(text)} characters" if text else ""
        raise PolicyError(f"{path!r} is a {type(value).__name__}{length}; expected text of up to {MAX_INSTRUCTION}")
    return text


def _came(flat: Mapping[str, Any]) -> str:
    return f"what came holds {_list(list(flat))}" if flat else "what came holds nothing"


def _list(paths: Sequence[str]) -> str:
    shown = [f"{path!r:.80}" for path in paths[:30]]
    return ", ".join([*shown, f"and {len(paths) - 30} more"] if len(paths) > 30 else shown) or "nothing"
