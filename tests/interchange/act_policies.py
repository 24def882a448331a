"""Small ACT policies: in a file of ours, and folders as LeRobot saves them."""

import json

import numpy as np
from serving.policies import make

from jaxvla.contract import Execution
from jaxvla.data.schema import BatchSpec
from jaxvla.interchange.native import write_native
from jaxvla.models.safetensors_io import HostTensor, open_checkpoint, write_checkpoint

SPEC = BatchSpec(("top", "wrist"), (32, 48), 5, 4, action_horizon=6)
TRANSFORMER = {
    "width": 16,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "num_latent_layers": 1,
    "latent_dim": 3,
    "dropout_rate": 0.0,
}
KWARGS = {"encoder": {"name": "resnet18", "path": ""}, "transformer": TRANSFORMER}
DATA = {"data_path": "data/pick", "format": "lerobot", "cameras": {"top": "observation.images.top", "wrist": "w"}}


def save_run(folder, spec=SPEC, kwargs=KWARGS, **others):
    """A policy of ours after 3 steps; returns its parameters and assets."""
    own = {"execution": Execution(execute_steps=4), "data_config": DATA} | others
    params, assets = make("act", kwargs, spec, values=(0.01, 0.05), **own)
    write_native(folder, params, assets, 3, "")
    return params, assets


def observation(spec=SPEC, seed=0):
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (*spec.image_size, 3), dtype=np.uint8) for camera in spec.cameras}
    return images | {"proprio": rng.normal(size=spec.proprio_dim).astype(np.float32)}


def change(folder, **values):
    """Other values in config.json; None takes one out."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def make_old(folder):
    """The layout before LeRobot 0.4: statistics among the weights, no processors, names of a compiled policy."""
    with open_checkpoint(folder) as stored:
        arrays = {name: np.array(t.read_rows(0, t.shape[0])).reshape(t.shape) for name, t in stored.items()}
    arrays = {name.replace("model.", "model._orig_mod.", 1): x for name, x in arrays.items()}
    with open_checkpoint(next(folder.glob("policy_preprocessor_*.safetensors"))) as stored:
        for full, tensor in stored.items():
            feature, _, statistic = full.rpartition(".")
            groups = ["normalize_targets", "unnormalize_outputs"] if feature == "action" else ["normalize_inputs"]
            for group in groups if statistic in ("mean", "std") else ():
                value = np.array(tensor.read_rows(0, tensor.shape[0])).reshape(tensor.shape)
                arrays[f"{group}.buffer_{feature.replace('.', '_')}.{statistic}"] = value
    for path in (*folder.glob("policy_*"), folder / "model.safetensors"):
        path.unlink()
    write_checkpoint(folder, {name: HostTensor(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}, 2**40)


def renamed_statistics(folder, name):
    """Statistics of a folder under other names."""
    for path in folder.glob("policy_*.safetensors"):
        with open_checkpoint(path) as stored:
            arrays = {key: np.array(t.read_rows(0, t.shape[0])).reshape(t.shape) for key, t in stored.items()}
        path.unlink()
        (path.parent / "part").mkdir()
        tensors = {name(key): HostTensor(x.shape, x.dtype, lambda x=x: x) for key, x in arrays.items()}
        write_checkpoint(path.parent / "part", tensors, 2**40)
        (path.parent / "part" / "model.safetensors").rename(path)
        (path.parent / "part").rmdir()
