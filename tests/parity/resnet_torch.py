"""ResNet-v1 with GroupNorm, coordinates and FiLM in torch, in float64, on jaxvla's parameters.

PYTHONPATH=tests python tests/parity/resnet_torch.py      writes tests/models/golden/resnet_*.npz (needs torch)
"""

import pathlib

import jax
import numpy as np
import torch
from models import resnet_cases
from torch.nn import functional

from jaxvla.models.resnet import ARCHITECTURES

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "golden"


def same_padding(x, kernel, stride, value=0.0):
    """TensorFlow's SAME: what is odd goes to the right and to the bottom."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value)


def conv_norm(x, p, stride):
    """Bias-free convolution with SAME padding unless `x` is padded already, then GroupNorm."""
    y = functional.conv2d(x, p["kernel"].permute(3, 2, 0, 1), stride=stride)
    return functional.group_norm(y, 4, p["scale"], p["bias"], eps=1e-5)


def block(x, p, cond, stride):
    """A basic or a bottleneck block, whichever the parameters are."""
    y = x
    units = [p["branch"][f"conv{i}"] for i in range(len(p["branch"]))]
    strided = [unit["kernel"].shape[0] for unit in units].index(3)
    for i, unit in enumerate(units):
        step = stride if i == strided else 1
        y = conv_norm(same_padding(functional.silu(y) if i else y, unit["kernel"].shape[0], step), unit, step)
    shortcut = conv_norm(x, p["shortcut"], stride) if "shortcut" in p else x
    y = functional.silu(y + shortcut)
    if "film" in p:
        linear = {name: (cond @ q["kernel"] + q["bias"])[:, :, None, None] for name, q in p["film"].items()}
        y = y * (1 + linear["scale"]) + linear["shift"]
    return y


def feature_map(params, pixels, cond):
    """The last feature map, [b, h, w, c], of pixels [b, h, w, 3]."""
    b, h, w, _ = pixels.shape
    rows, columns = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in (h, w))
    grid = torch.stack([rows[:, None].expand(h, w), columns[None].expand(h, w)])
    x = torch.cat([pixels.permute(0, 3, 1, 2), grid.expand(b, 2, h, w)], 1)
    x = functional.silu(conv_norm(functional.pad(x, (3, 3, 3, 3)), params["stem"], 2))
    x = functional.max_pool2d(same_padding(x, 3, 2, -torch.inf), 3, 2)
    for i in range(len(params["stages"])):
        stage = params["stages"][f"stage{i}"]
        x = block(x, stage["first"], cond, 2 if i else 1)
        repeats = len(stage["rest"]["branch"]["conv0"]["kernel"]) if "rest" in stage else 0
        for j in range(repeats):
            x = block(x, jax.tree.map(lambda leaf, j=j: leaf[j], stage["rest"]), cond, 1)
    return x.permute(0, 2, 3, 1)


def torch_result(inputs):
    """See `models.resnet_cases`; float32 numpy arrays."""
    params = jax.tree.map(
        lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), inputs["params"]
    )
    pixels = torch.tensor(inputs["images"] / np.float32(127.5) - 1, dtype=torch.float64, requires_grad=True)
    cond = torch.tensor(inputs["cond"], dtype=torch.float64, requires_grad=True)
    y = feature_map(params, pixels, cond)
    (y * torch.tensor(inputs["weights"], dtype=torch.float64)).sum().backward()

    def gradient(x):
        return np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy().astype(np.float32)

    return {
        "map": y.detach().numpy().astype(np.float32),
        "d_params": jax.tree.map(gradient, params),
        "d_pixels": gradient(pixels),
        "d_cond": gradient(cond),
    }


def main() -> None:
    """Writes a file per small network: its inputs and torch's result, arrays named by their path."""
    ARCHITECTURES.update(resnet_cases.SMALL)
    GOLDEN.mkdir(exist_ok=True)
    for name in resnet_cases.SMALL:
        inputs = resnet_cases.random_inputs(name, (22, 27))
        tree = {"inputs": inputs, "result": torch_result(inputs)}
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        arrays = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
        np.savez_compressed(GOLDEN / f"resnet_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
