"""The action head once more, in float64 numpy, one row at a time, written from its description."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def relu_mlp(params, x):
    return linear(params["out"], np.maximum(linear(params["hidden"], x), 0))


def norm(x, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def attention(params, x_sd, keys_td, visible_t, num_heads):
    q, k, v = (
        linear(params[name], tokens).reshape(len(tokens), num_heads, -1)
        for name, tokens in (("q_proj", x_sd), ("k_proj", keys_td), ("v_proj", keys_td))
    )
    out = np.zeros(q.shape)
    for n in range(num_heads):
        weights = np.exp(q[:, n] @ k[visible_t, n].T / np.sqrt(q.shape[-1]))
        out[:, n] = weights / weights.sum(-1, keepdims=True) @ v[visible_t, n]
    return linear(params["o_proj"], out.reshape(len(x_sd), -1))


def block(params, x_sd, condition_d, keys_td, visible_t, num_heads):
    scale, shift = np.split(linear(params["modulation"], silu(condition_d)), 2, -1)
    y = norm(x_sd, 1e-5) * (1 + scale) + shift
    x_sd = x_sd + attention(params["attention"], y, y if keys_td is None else keys_td, visible_t, num_heads)
    return x_sd + linear(params["down"], gelu_tanh(linear(params["up"], norm(x_sd, 1e-5))))


def time_embedding(params, bucket):
    """diffusers: Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=1), then TimestepEmbedding."""
    angles = bucket / 10000 ** (np.arange(128) / 127)
    wave = np.concatenate([np.cos(angles), np.sin(angles)])
    return linear(params["out"], silu(linear(params["hidden"], wave)))


def action_tokens(params, actions_ad, buckets):
    """Of one bucket for all actions, or of one for each."""
    half = params["action"]["kernel"].shape[1] // 2
    tokens = []
    for slot, (action, bucket) in enumerate(zip(actions_ad, np.broadcast_to(buckets, len(actions_ad)))):
        angles = bucket / 10000 ** (np.arange(half) / half)
        wave = np.concatenate([np.sin(angles), np.cos(angles)])
        mixed = silu(linear(params["mix"], np.concatenate([linear(params["action"], action), wave])))
        tokens.append(linear(params["out"], mixed) + params["positions"][slot])
    return np.stack(tokens)


def output(params, x_sd, condition_d):
    """Shift first, unlike in the blocks."""
    shift, scale = np.split(linear(params["out_modulation"], silu(condition_d)), 2, -1)
    return linear(params["out"], norm(x_sd, 1e-6) * (1 + scale) + shift)


def predict(params, actions_ad, bucket, context_tc, valid_t, num_heads, state_p=None, visible_a=None, known=0):
    """What the head gives for one row of noised actions, the first `known` of which are at the time 1."""
    dit = params["dit"]
    tokens = [] if state_p is None else [relu_mlp(params["state_encoder"], state_p[None])]
    buckets_a = np.where(np.arange(len(actions_ad)) < known, 1000, bucket)
    tokens += [params["future_tokens"], action_tokens(params["action_encoder"], actions_ad, buckets_a)]
    x_sd = np.concatenate(tokens)
    visible_s = np.ones(len(x_sd), bool)
    if visible_a is not None:
        visible_s[-len(actions_ad) :] = visible_a
    buckets_s = np.concatenate([np.full(len(x_sd) - len(actions_ad), bucket), buckets_a])
    condition_sd = np.stack([time_embedding(dit["time"], each) for each in buckets_s])
    for i in range(len(dit["layers"]["cross_block"]["up"]["bias"])):
        cross, own = (at(dit["layers"][name], i) for name in ("cross_block", "self_block"))
        x_sd = block(cross, x_sd, condition_sd, context_tc, valid_t, num_heads)
        x_sd = block(own, x_sd, condition_sd, None, visible_s, num_heads)
    return relu_mlp(params["action_decoder"], output(dit, x_sd, condition_sd)[-len(actions_ad) :])


def at(tree, i):
    return {key: at(value, i) if isinstance(value, dict) else value[i] for key, value in tree.items()}


def euler(params, noise_ad, num_steps, **inputs):
    x = noise_ad
    for step in range(num_steps):
        x = x + predict(params, x, int(step / num_steps * 1000), **inputs) / num_steps
    return x
