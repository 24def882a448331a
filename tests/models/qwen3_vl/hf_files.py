"""Hugging Face folders of Qwen3-VL whose every value follows from its tensor's name and place, written without jaxvla.

`golden/checkpoint` was written by transformers with these values, see tests/parity/qwen3_vl_checkpoint.py.
"""

import json
import math
import pathlib
import struct
import zlib

import ml_dtypes
import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "checkpoint"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}

CONFIG = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 72,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl_vision",
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 24,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
    },
}


def config(tied: bool = False) -> dict:
    """The parsed config.json; a fresh copy."""
    values = json.loads(json.dumps(CONFIG))
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = tied
    return values


def shapes(values: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor that transformers writes for the config."""
    text, vision = values["text_config"], values["vision_config"]
    d, f, h, v = (text[key] for key in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"))
    q, kv = h * text["num_attention_heads"], h * text["num_key_value_heads"]
    w, g, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    m = w * vision["spatial_merge_size"] ** 2
    found = {"model.language_model.embed_tokens.weight": (v, d), "model.language_model.norm.weight": (d,)}
    for i in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}."
        found |= {layer + "input_layernorm.weight": (d,), layer + "post_attention_layernorm.weight": (d,)}
        found |= {layer + "mlp.gate_proj.weight": (f, d), layer + "mlp.up_proj.weight": (f, d)}
        found |= {layer + "mlp.down_proj.weight": (d, f), layer + "self_attn.q_proj.weight": (q, d)}
        found |= {layer + "self_attn.k_proj.weight": (kv, d), layer + "self_attn.v_proj.weight": (kv, d)}
        found |= {layer + "self_attn.o_proj.weight": (d, q)}
        found |= {layer + "self_attn.q_norm.weight": (h,), layer + "self_attn.k_norm.weight": (h,)}
    patch = (w, vision["in_channels"], vision["temporal_patch_size"], p, p)
    found |= {"model.visual.patch_embed.proj.weight": patch, "model.visual.patch_embed.proj.bias": (w,)}
    found |= {"model.visual.pos_embed.weight": (vision["num_position_embeddings"], w)}
    for i in range(vision["depth"]):
        block = f"model.visual.blocks.{i}."
        for name, (rows, columns) in {
            "attn.qkv": (3 * w, w),
            "attn.proj": (w, w),
            "mlp.linear_fc1": (g, w),
            "mlp.linear_fc2": (w, g),
        }.items():
            found |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        found |= {f"{block}norm{n}.{kind}": (w,) for n in (1, 2) for kind in ("weight", "bias")}
    lists = [f"deepstack_merger_list.{i}" for i in range(len(vision["deepstack_visual_indexes"]))]
    for merger, width in [("merger", w), *((name, m) for name in lists)]:
        prefix = f"model.visual.{merger}."
        found |= {prefix + "norm.weight": (width,), prefix + "norm.bias": (width,)}
        found |= {prefix + "linear_fc1.weight": (m, m), prefix + "linear_fc1.bias": (m,)}
        found |= {prefix + "linear_fc2.weight": (d, m), prefix + "linear_fc2.bias": (d,)}
    return found if values["tie_word_embeddings"] else found | {"lm_head.weight": (v, d)}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Its float32 values: sixty-fourths below four, which bfloat16 holds exactly."""
    start = zlib.crc32(name.encode())
    return (((start + 31 * np.arange(math.prod(shape))) % 251).astype(np.float32) / 64).reshape(shape)


def write_file(path: pathlib.Path, tensors: dict[str, np.ndarray], edit_header=lambda header: None) -> None:
    """A safetensors file; `edit_header` may damage the parsed header."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, content = {}, b""
    for name, values in tensors.items():
        begin = len(content)
        content += values.tobytes()
        header[name] = {
            "dtype": names.get(values.dtype, "I8"),
            "shape": list(values.shape),
            "data_offsets": [begin, len(content)],
        }
    edit_header(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def read_files(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of the safetensors files of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        for name, entry in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                assert name not in found
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                found[name] = np.frombuffer(content[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def write_folder(folder: pathlib.Path, values: dict, dtype: str = "F32", edit=lambda tensors: None) -> pathlib.Path:
    """A folder of one file; `edit` may change the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor(name, shape).astype(DTYPES[dtype]) for name, shape in shapes(values).items()}
    edit(tensors)
    write_file(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(values))
    return folder
