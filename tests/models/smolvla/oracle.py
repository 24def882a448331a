"""SmolVLA's layers in numpy, float64: prefix and actions in one sequence, every mask written out, nothing kept."""

import numpy as np

from jaxvla.models.smolvla.config import ROPE_THETA


def rms_norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def rope(x_btnh, positions_bt):
    half = x_btnh.shape[-1] // 2
    angles = (positions_bt[..., None] / ROPE_THETA ** (np.arange(half) / half))[:, :, None]
    first, second = x_btnh[..., :half], x_btnh[..., half:]
    rotated = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
    return np.concatenate(rotated, axis=-1)


def attention(q, k, v, mask_bts):
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    logits = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(mask_bts[:, None], logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    return out.reshape(*out.shape[:2], -1)


class Layer:
    """Parameters of one layer."""

    def __init__(self, stack, index, config):
        self.params, self.index, self.config = stack, index, config

    def __getitem__(self, path):
        leaf = self.params
        for name in path.split("/"):
            leaf = leaf[name]
        return np.asarray(leaf, np.float64)[self.index]

    def normed(self, x):
        return rms_norm(x, self["input_layernorm/scale"], self.config.text.rms_norm_eps)

    def heads(self, x, name):
        y = x @ self[f"self_attn/{name}/kernel"]
        return y.reshape(*y.shape[:2], -1, self.config.text.head_dim)

    def finished(self, x, attended):
        x = x + attended @ self["self_attn/o_proj/kernel"]
        y = rms_norm(x, self["post_attention_layernorm/scale"], self.config.text.rms_norm_eps)
        gate, up = y @ self["mlp/gate_proj/kernel"], y @ self["mlp/up_proj/kernel"]
        return x + (gate / (1 + np.exp(-gate)) * up) @ self["mlp/down_proj/kernel"]


def masks(valid_bt, num_actions):
    """[b, t + a, t + a]: images and words 0, state 1, every action one more; seen is what is not later, and there."""
    b, t = valid_bt.shape
    order = np.concatenate([np.zeros(t - 1), 1 + np.arange(1 + num_actions)])
    valid = np.concatenate([valid_bt, np.ones((b, num_actions), bool)], axis=1)
    return (order[None] <= order[:, None]) & valid[:, None] & valid[:, :, None], np.cumsum(valid, axis=1) - 1


def joint_pass(params, prefix_btd, valid_bt, actions_baf, config):
    """The expert's output before the last projection, with the text layers and the expert's beside each other."""
    x, y = np.asarray(prefix_btd, np.float64), np.asarray(actions_baf, np.float64)
    t = x.shape[1]
    mask, positions = masks(np.asarray(valid_bt), y.shape[1])
    for i in range(config.text.num_hidden_layers):
        text = Layer(params["text"]["layers"], i, config)
        expert = Layer(params["expert"]["layers"]["cross" if i % 2 else "joint"], i // 2, config)
        normed = text.normed(x), expert.normed(y)
        q, k, v = (text.heads(normed[0], f"{name}_proj") for name in "qkv")
        own_q = expert.heads(normed[1], "q_proj")
        if i % 2:
            q, k = rope(q, positions[:, :t]), rope(k, positions[:, :t])
            attended_x = attention(q, k, v, mask[:, :t, :t])
            own_k, own_v = (
                expert.heads(z.reshape(*z.shape[:2], -1), f"{name}_proj") for z, name in ((k, "k"), (v, "v"))
            )
            own_q = rope(own_q, np.arange(y.shape[1])[None])
            attended_y = attention(own_q, own_k, own_v, mask[:, t:, :t])
        else:
            q, k, v = (
                np.concatenate([own, expert.heads(normed[1], f"{name}_proj")], axis=1)
                for own, name in ((q, "q"), (k, "k"), (v, "v"))
            )
            attended = attention(rope(q, positions), rope(k, positions), v, mask)
            attended_x, attended_y = attended[:, :t], attended[:, t:]
        x, y = text.finished(x, attended_x), expert.finished(y, attended_y)
    return rms_norm(y, np.asarray(params["expert"]["norm"]["scale"], np.float64), config.text.rms_norm_eps)
