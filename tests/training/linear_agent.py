"""A small real agent: a linear goal-conditioned policy on images averaged down to 4 x 4."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxvla.data.schema import BatchSpec

_CELLS = 4


@dataclasses.dataclass(frozen=True)
class LinearAgent:
    spec: BatchSpec
    batch_keys: tuple[str, ...] = ("observations", "goals", "actions", "action_pad_mask")
    frozen_modules: tuple[str, ...] = ()
    targets: None = None

    def init(self, rng):
        inputs = 2 * len(self.spec.cameras) * 3 * _CELLS**2 + self.spec.proprio_dim
        outputs = self.spec.action_horizon * self.spec.action_dim
        kernel = jax.random.normal(rng, (inputs, outputs)) / jnp.sqrt(inputs)
        return {"head": {"kernel": kernel, "bias": jnp.zeros(outputs)}}

    def loss(self, params, batch, rng):
        features = self._features(batch["observations"], batch["goals"])
        keep = jax.random.bernoulli(rng, 0.9, features.shape)
        mse = self._mse(self._actions(params, features * keep), batch)
        return mse.mean(), {"mse": mse.mean()}

    def evaluate(self, params, batch, rng):
        actions = self._actions(params, self._features(batch["observations"], batch["goals"]))
        return {"mse": self._mse(actions, batch)}

    def act(self, params, observations, task, rng=None, temperature=1.0):
        mode = self._actions(params, self._features(observations, task["goals"]))
        return mode if rng is None else mode + temperature * jax.random.normal(rng, mode.shape)

    def _features(self, observations, goals):
        images = [x for name in self.spec.cameras for x in (observations[name][:, -1], goals[name])]
        b, h, w, c = images[0].shape
        cells = [
            x.reshape(b, _CELLS, h // _CELLS, _CELLS, w // _CELLS, c).mean((2, 4)).reshape(b, -1) / 127.5 - 1
            for x in images
        ]
        return jnp.concatenate([*cells, observations["proprio"][:, -1]], axis=-1)

    def _actions(self, params, features):
        flat = features @ params["head"]["kernel"] + params["head"]["bias"]
        return flat.reshape(-1, self.spec.action_horizon, self.spec.action_dim)

    def _mse(self, actions, batch):
        error = ((actions - batch["actions"]) ** 2).sum(-1)
        inside = batch["action_pad_mask"]
        return (error * inside).sum(-1) / inside.sum(-1)
