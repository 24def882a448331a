"""How fast Qwen3-VL runs, how much memory its passes take, and how long they compile, beside the same in transformers.

    python benchmarks/qwen3_vl.py --width=1024 --layers=4 --vocab_size=32768          for a CPU
    python benchmarks/qwen3_vl.py --batch_size=16 --length=1024 --attention=cudnn     for a GPU

Weights are random. "forward" ends in the mean cross entropy, "decode" is greedy and goes on behind a prompt of --length
tokens in the static cache, prefill not included. Passes take turns with a product of square matrices and with sums over
the rows of a large one, so that what else the machine does meets all of them; figures are medians of the rounds. FLOPs
are those of the model's products: the masked half of causal attention and recomputation do not count, a backward pass
counts twice its forward pass. "of matmul" is their rate over that of the square matrices; "of reading", in decode, the
time that reading all weights and keys once per step would take, over the time of the step. transformers runs eagerly,
with sdpa attention, a growing cache and parameters in --dtype; those of jaxvla are float32, its products in --dtype.
"""

import dataclasses
import functools
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util
from turns import Pass, measure, say

from jaxvla import cli
from jaxvla.errors import ConfigError
from jaxvla.models.cache import Cache, start_cache
from jaxvla.models.generation import Sampling, continue_text
from jaxvla.models.layers import cast_matrices
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.qwen3_vl.config import PRESETS, Qwen3VLConfig, preset, to_hf
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import Grids, num_image_tokens, num_patches
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.models.stack import REMAT_POLICIES
from jaxvla.ops.attention import IMPLEMENTATIONS

FLAGS = flags.FLAGS
flags.DEFINE_enum("preset", "qwen3_vl_2b", list(PRESETS), "Sizes, unless the next four change them.")
flags.DEFINE_integer("width", None, "Of the text decoder; its MLP and the number of its heads change in proportion.")
flags.DEFINE_integer("layers", None, "Of the text decoder.", lower_bound=1)
flags.DEFINE_integer("vision_layers", None, "Of the vision tower.", lower_bound=1)
flags.DEFINE_integer("vocab_size", None, "Rows of the embedding table.", lower_bound=8)
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of computation; by default float32 on CPUs, else bfloat16.")
flags.DEFINE_enum("attention", "xla", IMPLEMENTATIONS, "Of jaxvla.")
flags.DEFINE_enum("remat", "none", REMAT_POLICIES, "What a pass through the layers keeps for its backward pass.")
flags.DEFINE_integer("batch_size", 2, "Samples, except in decode.", lower_bound=1)
flags.DEFINE_integer("length", 512, "Tokens of a sample, those of images included.", lower_bound=2)
flags.DEFINE_integer("images", 0, "Images per sample.", lower_bound=0)
flags.DEFINE_integer("image_size", 256, "Pixels of an image's side.", lower_bound=32)
flags.DEFINE_integer("loss_chunk", 128, "Positions of a sample whose logits exist at one time.", lower_bound=1)
flags.DEFINE_integer("decode_batch_size", 1, "Samples in decode.", lower_bound=1)
flags.DEFINE_integer("new_tokens", 32, "Steps of decode.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Of measuring every pass.", lower_bound=1)
flags.DEFINE_bool("transformers", True, "Measure transformers, too, where it and torch are installed.")
flags.DEFINE_integer("torch_threads", None, "On CPUs; by default what torch chooses.", lower_bound=1)

# Sides of square matrices: the first take long enough to multiply, the second fit in no cache.
MATMUL_SIDE = {"cpu": 2048, "gpu": 16384, "tpu": 16384}
READ_SIDE = {"cpu": 8192, "gpu": 16384, "tpu": 16384}
# The least seconds between two looks at the clock.
LEAST_SECONDS = 0.2


def model_config() -> Qwen3VLConfig:
    config = preset(FLAGS.preset)
    text, vision, ids = config.text, config.vision, {}
    if FLAGS.width is not None:
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        sizes = {name: getattr(text, name) * FLAGS.width for name in names}
        if FLAGS.width < 1 or any(size % text.hidden_size for size in sizes.values()):
            raise ConfigError(f"--width={FLAGS.width} leaves no whole number of heads of {FLAGS.preset}")
        sizes = {name: size // text.hidden_size for name, size in sizes.items()}
        text, vision = dataclasses.replace(text, **sizes), dataclasses.replace(vision, out_hidden_size=FLAGS.width)
    if FLAGS.layers is not None:
        text = dataclasses.replace(text, num_hidden_layers=FLAGS.layers)
    if FLAGS.vision_layers is not None:
        indexes = {index * FLAGS.vision_layers // vision.depth for index in vision.deepstack_visual_indexes}
        vision = dataclasses.replace(vision, depth=FLAGS.vision_layers, deepstack_visual_indexes=tuple(sorted(indexes)))
    if FLAGS.vocab_size is not None:
        text = dataclasses.replace(text, vocab_size=FLAGS.vocab_size)
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {name: FLAGS.vocab_size - 4 + i for i, name in enumerate(names)}
    dtype = FLAGS.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    options = {"dtype": dtype, "attention": FLAGS.attention, "remat": FLAGS.remat}
    return dataclasses.replace(config, text=text, vision=vision, **ids, **options)


def image_grids(config: Qwen3VLConfig) -> Grids:
    side, rest = divmod(FLAGS.image_size, config.vision.patch_size)
    if rest:
        raise ConfigError(f"--image_size={FLAGS.image_size} is no multiple of patches of {config.vision.patch_size}")
    return ((side, side),) * FLAGS.images


def make_batch(config: Qwen3VLConfig, grids: Grids, batch_size: int) -> dict[str, np.ndarray]:
    """tokens_bt with images in front, patches_bpf where there are images."""
    rng = np.random.default_rng(0)
    count = num_image_tokens(grids[:1], config.vision)
    image = [config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id]
    if len(grids) * len(image) >= FLAGS.length:
        raise ConfigError(
            f"{len(grids)} images of {count} tokens leave no room for text; raise --length={FLAGS.length}"
        )
    ordinary = min(config.image_token_id, config.video_token_id, config.vision_start_token_id)
    tokens_bt = rng.integers(0, min(ordinary, config.text.vocab_size - 4), (batch_size, FLAGS.length), np.int32)
    tokens_bt[:, : len(grids) * len(image)] = image * len(grids)
    batch = {"tokens_bt": tokens_bt}
    if grids:
        shape = (batch_size, num_patches(grids), config.vision.patch_dim)
        batch["patches_bpf"] = rng.standard_normal(shape, np.float32)
    return batch


def kernel_size(config: Qwen3VLConfig, prefix: str) -> int:
    """Entries of all kernels below a path."""
    flat = traverse_util.flatten_dict(param_shapes(config), sep="/")
    return sum(leaf.size for path, leaf in flat.items() if path.startswith(prefix) and path.endswith("/kernel"))


def text_products(config: Qwen3VLConfig) -> int:
    """Multiplications of a token with the decoder's kernels and the head's."""
    return kernel_size(config, "text/layers/") + config.text.hidden_size * config.text.vocab_size


def forward_flops(config: Qwen3VLConfig, grids: Grids) -> float:
    text, vision = config.text, config.vision
    attention = text.num_hidden_layers * text.num_attention_heads * text.head_dim * FLAGS.length * (FLAGS.length + 1)
    products = FLAGS.length * text_products(config) + attention
    if grids:
        per_patch = sum(kernel_size(config, f"visual/{part}/") for part in ("patch_embed", "blocks"))
        per_token = sum(kernel_size(config, f"visual/{part}/") for part in ("merger", "deepstack_mergers"))
        products += num_patches(grids) * per_patch + num_image_tokens(grids, vision) * per_token
        products += 2 * vision.depth * vision.hidden_size * sum((rows * columns) ** 2 for rows, columns in grids)
    return 2.0 * FLAGS.batch_size * products


def decode_work(config: Qwen3VLConfig) -> tuple[float, int]:
    """FLOPs of all steps, and bytes to read."""
    text, past = config.text, FLAGS.length + FLAGS.new_tokens // 2
    attention = 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * past
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * past
    flops = 2.0 * FLAGS.decode_batch_size * (text_products(config) + attention)
    size = compute_dtype(config.dtype).itemsize * (text_products(config) + FLAGS.decode_batch_size * keys)
    return FLAGS.new_tokens * flops, FLAGS.new_tokens * size


def loss_of(config: Qwen3VLConfig, grids: Grids) -> Callable[[Params, dict[str, jax.Array]], jax.Array]:
    graph = graph_of(lambda rngs: Qwen3VL(config, rngs))

    def loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        model: Qwen3VL = bind(graph, params)
        hidden_btd = model.forward(**batch, grids=grids)
        losses_bt, _ = model.token_losses(hidden_btd[:, :-1], batch["tokens_bt"][:, 1:], FLAGS.loss_chunk)
        return losses_bt.mean()

    return loss


def compile_pass(label: str, function: Callable, *inputs: Any, **work: Any) -> Pass:
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    seconds = time.perf_counter() - start
    say(f"compiled {label} in {seconds:.1f} s")
    return Pass(
        label,
        lambda: jax.block_until_ready(compiled(*inputs)),
        temporary=compiled.memory_analysis().temp_size_in_bytes,
        compile_seconds=seconds,
        **work,
    )


def machine_passes(dtype: jnp.dtype) -> list[Pass]:
    """What the same device makes of a plain product of matrices, and of reading memory."""
    side, read_side = (sides[jax.default_backend()] for sides in (MATMUL_SIDE, READ_SIDE))
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    large = jnp.ones((read_side, read_side), dtype)
    return [
        compile_pass("matmul", jnp.matmul, a, b, flops=2.0 * side**3),
        compile_pass("reading", functools.partial(jnp.sum, axis=1), large, reading=large.nbytes),
    ]


def jaxvla_passes(config: Qwen3VLConfig, grids: Grids) -> list[Pass]:
    make = functools.partial(init_params, lambda rngs: Qwen3VL(config, rngs))
    params = jax.jit(make)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, make_batch(config, grids, FLAGS.batch_size))
    loss, flops, tokens = loss_of(config, grids), forward_flops(config, grids), FLAGS.batch_size * FLAGS.length
    return [
        compile_pass("jaxvla forward", loss, params, batch, tokens=tokens, flops=flops),
        compile_pass(
            "jaxvla forward+backward", jax.value_and_grad(loss), params, batch, tokens=tokens, flops=3 * flops
        ),
        decode_pass(config, grids, params),
    ]


def decode_pass(config: Qwen3VLConfig, grids: Grids, params: Params) -> Pass:
    graph = graph_of(lambda rngs: Qwen3VL(config, rngs))
    params = cast_matrices(params, compute_dtype(config.dtype))

    @jax.jit
    def prefill(params: Params, tokens_bt: jax.Array, patches_bpf: jax.Array | None = None) -> tuple[Cache, jax.Array]:
        model: Qwen3VL = bind(graph, params)
        images = None if patches_bpf is None else model.encode_images(patches_bpf, grids)
        output, layout = model.decode_tokens(tokens_bt, images=images, grids=grids, keep_keys=True)
        return start_cache(output, layout.next_position_b, FLAGS.length + FLAGS.new_tokens), output.hidden_btd[:, -1:]

    def decode(params: Params, cache: Cache, hidden_b1d: jax.Array) -> jax.Array:
        sampling = Sampling(FLAGS.new_tokens)
        return continue_text(
            bind(graph, params).text, cache, hidden_b1d, jax.random.key(0), sampling=sampling
        ).tokens_bm

    cache, hidden_b1d = prefill(params, **make_batch(config, grids, FLAGS.decode_batch_size))
    flops, reading = decode_work(config)
    work = {"tokens": FLAGS.decode_batch_size * FLAGS.new_tokens, "flops": flops, "reading": reading}
    return compile_pass("jaxvla decode", decode, params, cache, hidden_b1d, **work)


def why_not_transformers() -> str | None:
    """Why transformers cannot be measured; None where it can."""
    if not FLAGS.transformers:
        return "--notransformers"
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    import torch

    if jax.default_backend() == "cpu" or (jax.default_backend() == "gpu" and torch.cuda.is_available()):
        return None
    return f"torch {torch.__version__} cannot use this {jax.default_backend()}"


def transformers_passes(config: Qwen3VLConfig, grids: Grids) -> list[Pass]:
    import torch
    from transformers import DynamicCache, Qwen3VLForConditionalGeneration
    from transformers import Qwen3VLConfig as HFConfig

    if FLAGS.torch_threads is not None:
        torch.set_num_threads(FLAGS.torch_threads)
    device, dtype = {"cpu": "cpu", "gpu": "cuda"}[jax.default_backend()], getattr(torch, config.dtype)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration._from_config(
            HFConfig.from_dict(to_hf(config)), attn_implementation="sdpa", dtype=dtype
        ).eval()

    def inputs_of(batch_size: int) -> dict[str, torch.Tensor]:
        batch = jax.tree.map(torch.from_numpy, make_batch(config, grids, batch_size))
        tokens = batch["tokens_bt"].long().to(device)
        inputs = {"input_ids": tokens, "mm_token_type_ids": (tokens == config.image_token_id).int()}
        if grids:
            inputs["pixel_values"] = batch["patches_bpf"].flatten(0, 1).to(device, dtype)
            inputs["image_grid_thw"] = torch.tensor([(1, *grid) for grid in grids] * batch_size, device=device)
        return inputs

    def forward() -> float:
        with torch.no_grad():
            return model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.item()

    def forward_backward() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        loss.backward()
        return model.get_input_embeddings().weight.grad[0, 0].item()  # waits for the device

    def decode() -> list[int]:
        model.model.rope_deltas = deltas  # of the prompt; other passes leave theirs
        token, chosen = first, []
        with torch.no_grad():
            for _ in range(FLAGS.new_tokens):
                token = model(input_ids=token, past_key_values=cache).logits[:, -1:].argmax(-1)
                chosen.append(token)
        cache.crop(-FLAGS.new_tokens)
        return torch.cat(chosen, 1).tolist()

    inputs, prompt, cache = inputs_of(FLAGS.batch_size), inputs_of(FLAGS.decode_batch_size), DynamicCache()
    with torch.no_grad():
        first = model(**prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    deltas = model.model.rope_deltas
    tokens, flops, (decode_flops, reading) = (
        FLAGS.batch_size * FLAGS.length,
        forward_flops(config, grids),
        decode_work(config),
    )
    new_tokens = FLAGS.decode_batch_size * FLAGS.new_tokens
    return [
        Pass("transformers forward", forward, tokens, flops),
        Pass("transformers forward+backward", forward_backward, tokens, 3 * flops),
        Pass("transformers decode", decode, new_tokens, decode_flops, reading),
    ]


def report(passes: list[Pass], matmul: Pass, reading: Pass) -> None:
    peak, bandwidth = matmul.flops / matmul.median, reading.reading / reading.median
    say(f"\nmatmul {peak / 1e9:.1f} GFLOP/s, reading {bandwidth / 1e9:.1f} GB/s")
    say(f"{'':<30} tokens/s   min..max            GFLOP/s  of matmul  of reading  temporary MB  compile s")
    for one in passes:
        rates = [one.tokens / seconds for seconds in one.seconds]
        spread = f"{min(rates):.1f}..{max(rates):.1f}"
        bound = f"{one.reading / bandwidth / one.median:>11.2f}" if one.reading else f"{'-':>11}"
        compiled = f"{'-':>13} {'-':>10}"
        if one.compile_seconds is not None:
            compiled = f"{one.temporary / 1e6:>13.1f} {one.compile_seconds:>10.1f}"
        say(
            f"{one.label:<30} {one.tokens / one.median:>8.1f}   {spread:<17} {one.flops / one.median / 1e9:>9.1f} "
            f"{one.flops / one.median / peak:>10.2f} {bound} {compiled}"
        )


def main(_: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    config = model_config()
    grids = image_grids(config)
    text, size = config.text, sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))
    say(
        f"{FLAGS.preset}: {text.num_hidden_layers} layers of width {text.hidden_size}, vocabulary {text.vocab_size}, "
        f"{size / 1e6:.0f} M parameters, {config.dtype}, attention {config.attention}, remat {config.remat}; "
        f"{FLAGS.batch_size} x {FLAGS.length} tokens, {FLAGS.images} images of {FLAGS.image_size} px per sample; "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    )
    matmul, reading = machine_passes(compute_dtype(config.dtype))
    ours, reason = jaxvla_passes(config, grids), why_not_transformers()
    theirs = [] if reason else transformers_passes(config, grids)
    measure([matmul, reading, *ours, *theirs], FLAGS.rounds, LEAST_SECONDS)
    report([*ours, *theirs], matmul, reading)
    if reason:
        say(f"transformers: not measured ({reason})")
    for one, other in zip(ours, theirs):
        say(f"{one.label} takes {one.median / other.median:.2f} of the time of {other.label}")


if __name__ == "__main__":
    cli.run(main)
