"""Folders of LeRobot whose tensors have the published names, written without jaxvla's table of them."""

import json
import re

from models.qwen3_vl.hf_files import DTYPES, tensor, write_file

from jaxvla.models.smolvla.config import VLM

# Of lerobot/smolvla_base.
VALUES = {
    "type": "smolvla",
    "n_obs_steps": 1,
    "input_features": {"observation.state": {"type": "STATE", "shape": [6]}},
    "output_features": {"action": {"type": "ACTION", "shape": [6]}},
    "chunk_size": 50,
    "n_action_steps": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "resize_imgs_with_padding": [512, 512],
    "empty_cameras": 0,
    "adapt_to_pi_aloha": False,
    "tokenizer_max_length": 48,
    "num_steps": 10,
    "freeze_vision_encoder": True,
    "train_expert_only": True,
    "train_state_proj": True,
    "vlm_model_name": VLM,
    "load_vlm_weights": True,
    "add_image_special_tokens": False,
    "attention_mode": "cross_attn",
    "prefix_length": 0,
    "pad_language_to": "max_length",
    "num_expert_layers": 0,
    "num_vlm_layers": 16,
    "self_attn_every_n_layers": 2,
    "expert_width_multiplier": 0.75,
    "min_period": 0.004,
    "max_period": 4.0,
}
VLM_PREFIX = "model.vlm_with_expert.vlm."
# The projections and the keys of odd layers are float32 there.
WIDE = re.compile(r"^model\.(state|action)_|lm_expert\.layers\.\d*[13579]\.self_attn\.[kv]_proj")


def shapes(depth=16, vision_depth=12, d=960, f=2560, kv=320, e=720, g=2048, w=768, h=3072, rows=49280):
    """Name to shape of every tensor: 500 of them by default, with 450,046,176 values."""

    def linear(name, out_dim, in_dim):
        return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}

    def layer(name, width, ffn, queries, key_input):
        attention, mlp = f"{name}.self_attn.", f"{name}.mlp."
        return {
            f"{name}.input_layernorm.weight": (width,),
            f"{name}.post_attention_layernorm.weight": (width,),
            attention + "q_proj.weight": (queries, width),
            attention + "o_proj.weight": (width, queries),
            attention + "k_proj.weight": (kv, key_input),
            attention + "v_proj.weight": (kv, key_input),
            mlp + "gate_proj.weight": (ffn, width),
            mlp + "up_proj.weight": (ffn, width),
            mlp + "down_proj.weight": (width, ffn),
        }

    vision, text, expert = (
        VLM_PREFIX + "model.vision_model.",
        VLM_PREFIX + "model.text_model.",
        "model.vlm_with_expert.",
    )
    expert += "lm_expert."
    found = linear("model.state_proj", d, 32) | linear("model.action_in_proj", e, 32)
    found |= linear("model.action_out_proj", 32, e)
    found |= linear("model.action_time_mlp_in", e, 2 * e) | linear("model.action_time_mlp_out", e, e)
    found |= {
        VLM_PREFIX + "lm_head.weight": (rows, d),
        text + "embed_tokens.weight": (rows, d),
        text + "norm.weight": (d,),
    }
    found |= {VLM_PREFIX + "model.connector.modality_projection.proj.weight": (d, 16 * w), expert + "norm.weight": (e,)}
    for i in range(depth):
        found |= layer(f"{text}layers.{i}", d, f, d, d)
        found |= layer(f"{expert}layers.{i}", e, g, d, kv if i % 2 else e)
    found |= {
        vision + "embeddings.patch_embedding.weight": (w, 3, 16, 16),
        vision + "embeddings.patch_embedding.bias": (w,),
    }
    found |= {vision + "embeddings.position_embedding.weight": (1024, w)}
    for i in range(vision_depth):
        block = f"{vision}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{block}self_attn.{name}", w, w)
        found |= linear(f"{block}mlp.fc1", h, w) | linear(f"{block}mlp.fc2", w, h)
        found |= {f"{block}layer_norm{n}.{kind}": (w,) for n in (1, 2) for kind in ("weight", "bias")}
    return found | {f"{vision}post_layernorm.{kind}": (w,) for kind in ("weight", "bias")}


# A model as deep as it takes to have layers of each kind twice, of widths that a test can hold.
SMALL = {"depth": 4, "vision_depth": 2, "d": 24, "f": 40, "kv": 8, "e": 18, "g": 256, "w": 16, "h": 24, "rows": 64}


def write_folder(folder, edit=lambda tensors: None):
    """A folder of the small model; `edit` may change the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor(name, shape).astype(DTYPES["F32" if WIDE.search(name) else "BF16"])
        for name, shape in shapes(**SMALL).items()
    }
    edit(tensors)
    write_file(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(VALUES))
    return folder
