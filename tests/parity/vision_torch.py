"""The towers of timm and of transformers on our parameters, in float64.

PYTHONPATH=tests python tests/parity/vision_torch.py      writes tests/models/vision/golden/*.npz (needs torch and timm)
"""

import pathlib

import numpy as np
import torch
from flax import traverse_util
from models.vision import tower_cases

from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.weights import host_tensors

# What transformers 5 calls its modules in memory; files keep the older names.
_IN_MEMORY = {"attention.output.dense": "attention.o_proj"} | {
    f"attention.attention.{part}": f"attention.{part[0]}_proj" for part in ("query", "key", "value")
}
GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "vision" / "golden"


def timm_tower(config):
    """timm's model, and images to features before or after the last norm."""
    from timm.models.vision_transformer import VisionTransformer

    dino = isinstance(config, Dinov2Config)
    options = {"init_values": 1e-5, "reg_tokens": config.num_register_tokens} if dino else {"class_token": False}
    tower = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        no_embed_class=dino and not config.class_position,
        global_pool="token" if dino else "map",
        num_classes=0,
        **options,
    )

    def run(pixels):
        if config.read_layers is None:
            return tower.forward_features(pixels)
        found = tower.get_intermediate_layers(pixels, n={config.read_layers - 1}, return_prefix_tokens=dino)[0]
        return torch.cat([found[1], found[0]], 1) if dino else found

    return tower, run


def transformers_tower(config):
    """DINOv2 of transformers, and images to features after the last norm."""
    import transformers

    sizes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size // config.hidden_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "attn_implementation": "eager",
    }
    if config.num_register_tokens:
        with_registers = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=config.num_register_tokens)
        tower = transformers.Dinov2WithRegistersModel(with_registers)
    else:
        tower = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    return tower, lambda pixels: tower(pixel_values=pixels).last_hidden_state


def make_tower(case):
    """A tower with `tower_cases.seeded_params`, its parameters by name, and images to features."""
    tower, run = (timm_tower if case.names == "timm" else transformers_tower)(case.config)
    tensors = host_tensors(tower_cases.seeded_params(case), case.table)
    state = {_in_memory(name): torch.tensor(tensor.make().copy()) for name, tensor in tensors.items()}
    missing, unexpected = tower.load_state_dict(state, strict=False)
    assert set(missing) <= {"embeddings.mask_token"}, missing
    assert not unexpected, unexpected
    return tower.double().eval(), run


def torch_result(case):
    """See `tower_cases`; float32 numpy arrays."""
    tower, run = make_tower(case)
    images, weights = tower_cases.inputs(case)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy(), dtype=torch.float64, requires_grad=True)
    features = run(pixels)
    (features * torch.tensor(weights, dtype=torch.float64)).sum().backward()
    named = dict(tower.named_parameters())
    prefix = case.config.num_prefix if isinstance(case.config, Dinov2Config) else 0
    result = {"patches": features[:, prefix:], "pixels": pixels.grad.permute(0, 2, 3, 1)}
    result |= {"prefix": features[:, :prefix]} if prefix else {}
    result = {name: value.detach().numpy() for name, value in result.items()}
    result |= {f"gradient/{path}": value for path, value in gradients_of(case.table, named).items()}
    return {name: np.asarray(value, np.float32) for name, value in result.items()}


def gradients_of(table, named):
    """Those of our parameters, from torch's by their names; 0 where nothing reads one."""
    flat = {}
    for weight in table:
        parts = []
        for name in weight.hf_names:
            given = named[_in_memory(name)].grad
            grad = np.zeros(weight.hf_shape) if given is None else given.numpy().reshape(weight.hf_shape)
            parts.append(grad.reshape(len(grad), -1).T if weight.transposed else grad.reshape(weight.part_shape))
        joined = [np.concatenate(parts[i : i + weight.parts], -1) for i in range(0, len(parts), weight.parts)]
        flat[weight.path] = np.stack(joined) if weight.stacked else joined[0]
    return flat


def _in_memory(name):
    for old, new in _IN_MEMORY.items():
        name = name.replace(old, new)
    return name


def torch_positions(case, side):
    """The position table of a case for a grid of another side, as whoever made the tower resizes it."""
    table = traverse_util.flatten_dict(tower_cases.seeded_params(case), sep="/")["position_embedding/embedding"]
    table = torch.tensor(table)[None]
    if case.names == "timm":
        from timm.layers import resample_abs_pos_embed

        prefix = int(case.config.class_position)
        return resample_abs_pos_embed(table, [side, side], num_prefix_tokens=prefix)[0].numpy()
    tower, _ = make_tower(case)
    pixels = side * case.config.patch_size
    embeddings = tower.float().embeddings
    tokens = torch.zeros(1, side**2 + 1, case.config.hidden_size)
    return embeddings.interpolate_pos_encoding(tokens, pixels, pixels)[0].detach().numpy()


def main() -> None:
    """Writes a file per case: features, the gradient by the image, and positions of larger images."""
    GOLDEN.mkdir(exist_ok=True)
    for name, case in tower_cases.CASES.items():
        result = {key: value for key, value in torch_result(case).items() if not key.startswith("gradient/")}
        if isinstance(case.config, Dinov2Config):
            result["larger"] = torch_positions(case, 5)
        np.savez_compressed(GOLDEN / f"{name}.npz", **result)


if __name__ == "__main__":
    main()
