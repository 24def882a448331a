"""The tensors of openvla/openvla-7b and of v01, name to shape, written down by hand and not from the tables."""


def _linear(name, out, into):
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name, width, mlp, scaled):
    scales = {f"{name}.ls{i}.scale_factor": (width,) for i in (1, 2)} if scaled else {}
    return {
        **_norm(f"{name}.norm1", width),
        **_norm(f"{name}.norm2", width),
        **_linear(f"{name}.attn.qkv", 3 * width, (width,)),
        **_linear(f"{name}.attn.proj", width, (width,)),
        **_linear(f"{name}.mlp.fc1", mlp, (width,)),
        **_linear(f"{name}.mlp.fc2", width, (mlp,)),
        **scales,
    }


def dinov2(name, width=1024, mlp=4096, blocks=24, patches=256, patch=14):
    tensors = {f"{name}.cls_token": (1, 1, width), f"{name}.reg_token": (1, 4, width)}
    tensors |= {
        f"{name}.pos_embed": (1, patches, width),
        **_linear(f"{name}.patch_embed.proj", width, (3, patch, patch)),
    }
    for i in range(blocks):
        tensors |= _block(f"{name}.blocks.{i}", width, mlp, scaled=True)
    return tensors | _norm(f"{name}.norm", width)


def siglip(name, width=1152, mlp=4304, blocks=27, patches=256, patch=14):
    tensors = {
        f"{name}.pos_embed": (1, patches, width),
        **_linear(f"{name}.patch_embed.proj", width, (3, patch, patch)),
    }
    for i in range(blocks):
        tensors |= _block(f"{name}.blocks.{i}", width, mlp, scaled=False)
    pool = f"{name}.attn_pool"
    return {
        **tensors,
        **_norm(f"{name}.norm", width),
        f"{pool}.latent": (1, 1, width),
        **_linear(f"{pool}.q", width, (width,)),
        **_linear(f"{pool}.kv", 2 * width, (width,)),
        **_linear(f"{pool}.proj", width, (width,)),
        **_norm(f"{pool}.norm", width),
        **_linear(f"{pool}.mlp.fc1", mlp, (width,)),
        **_linear(f"{pool}.mlp.fc2", width, (mlp,)),
    }


def llama(layers=32, width=4096, mlp=11008, vocab=32064):
    tensors = {"language_model.model.embed_tokens.weight": (vocab, width)}
    for i in range(layers):
        layer = f"language_model.model.layers.{i}"
        tensors |= {f"{layer}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        tensors |= {f"{layer}.mlp.{part}_proj.weight": (mlp, width) for part in ("gate", "up")}
        tensors |= {f"{layer}.mlp.down_proj.weight": (width, mlp)}
        tensors |= {f"{layer}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return tensors | {"language_model.model.norm.weight": (width,), "language_model.lm_head.weight": (vocab, width)}


def projector(*dims):
    tensors = {}
    for i in range(1, len(dims)):
        tensors |= _linear(f"projector.fc{i}", dims[i], (dims[i - 1],))
    return tensors


FEATURIZER, FUSED = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
OPENVLA_7B = {**dinov2(FEATURIZER), **siglip(FUSED), **projector(2176, 8704, 4096, 4096), **llama()}
V01 = {**siglip(FEATURIZER), **projector(1152, 4096, 4096), **llama()}
