"""ACT between LeRobot's config.json and the settings of the agent."""

from typing import Any

import numpy as np

from jaxvla.agents.act import ACTAgent, ACTConfig
from jaxvla.assets import Assets
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.interchange.policy_folder import PolicyFolder
from jaxvla.models.vision import frozen_resnet

# Sizes of the transformers, by our names.
_SIZES = {
    "width": "dim_model",
    "num_heads": "n_heads",
    "mlp_dim": "dim_feedforward",
    "num_encoder_layers": "n_encoder_layers",
    "num_decoder_layers": "n_decoder_layers",
    "num_latent_layers": "n_vae_encoder_layers",
    "latent_dim": "latent_dim",
}
# What config.json can say that the agent does not have, and what it must say instead.
_REQUIRED = {
    "n_obs_steps": 1,
    "replace_final_stride_with_dilation": False,
    "pre_norm": False,
    "feedforward_activation": "relu",
}


def read_kwargs(policy: PolicyFolder) -> dict[str, Any]:
    """The `agent_kwargs` that the weights fix; how they are trained is not among them.

    Raises:
        WeightsError: a variant that the agent does not have.
    """
    values, where = policy.values, policy.config_path
    for key, wanted in _REQUIRED.items():
        if values.get(key, wanted) != wanted:
            raise WeightsError(f"{where}: {key} is {values[key]!r}, but act here has {wanted!r}")
    name = values.get("vision_backbone", "resnet18")
    if name not in frozen_resnet.ARCHITECTURES:
        known = ", ".join(frozen_resnet.ARCHITECTURES)
        raise WeightsError(f"{where}: vision_backbone is {name!r}, but act here looks through {known}")
    strange = [key for key, feature in policy.inputs.items() if feature.type == "ENV"]
    if strange or not policy.cameras:
        raise WeightsError(f"{where}: its inputs are {', '.join(policy.inputs)}; act here sees cameras and a state")
    _check_pictures(policy)
    sizes = {ours: values[theirs] for ours, theirs in _SIZES.items() if theirs in values}
    own = {"use_proprio": bool(policy.proprio_dim), "use_latent": bool(values.get("use_vae", True))}
    return {"encoder": {"name": name, "path": ""}, "transformer": sizes, **own}


def check(policy: PolicyFolder, spec: BatchSpec) -> None:
    """Raises WeightsError unless batches have the dimensions of the weights."""
    pairs = [("an action", policy.action_dim, spec.action_dim)]
    pairs += [("the robot's state", policy.proprio_dim, spec.proprio_dim)] if policy.proprio_dim else []
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise WeightsError(
                f"{policy.path}: {what} has {theirs} numbers there, {ours} in the data: act cannot go on with it, "
                "train it from random weights"
            )


def write_values(agent: ACTAgent, assets: Assets) -> dict[str, Any]:
    """The part of config.json that is of ACT alone.

    Raises:
        ConfigError: an ensemble that LeRobot does not have.
    """
    execution = assets.execution
    if execution.ensemble is not None and (execution.ensemble_by != "age" or execution.ensemble_last):
        raise ConfigError(
            f"LeRobot's ensembles weigh all predictions by age, execution.ensemble is {execution.averaging()}: set "
            "ensemble_by to age and ensemble_last to 0, or the ensemble to None"
        )
    config: ACTConfig = agent.config
    optimizer = dict(assets.train_config.get("optimizer") or {})
    rate = optimizer.get("learning_rate", 1e-5)
    return {
        "vision_backbone": config.encoder.name,
        "pretrained_backbone_weights": None,  # which LeRobot would fetch, to put these in their place
        "replace_final_stride_with_dilation": False,
        "pre_norm": False,
        "feedforward_activation": "relu",
        "use_vae": config.use_latent,
        "dropout": config.transformer.dropout_rate,
        "kl_weight": config.kl_weight,
        "temporal_ensemble_coeff": execution.ensemble,
        "optimizer_lr": rate,
        "optimizer_weight_decay": optimizer.get("weight_decay", 1e-4),
        "optimizer_lr_backbone": dict(optimizer.get("learning_rates") or {}).get("backbone", rate),
        **{theirs: getattr(config.transformer, ours) for ours, theirs in _SIZES.items()},
    }


def picture_statistics() -> dict[str, np.ndarray]:
    """Those of a camera: pictures in [0, 1] are normalized as ImageNet's, [3, 1, 1] each."""
    pairs = {"mean": frozen_resnet.MEAN, "std": frozen_resnet.STD}
    return {name: np.array(own, np.float32).reshape(3, 1, 1) for name, own in pairs.items()}


def _check_pictures(policy: PolicyFolder) -> None:
    """Raises WeightsError where pictures are normalized otherwise than the image encoder does it."""
    mode = policy.mode_of("VISUAL")
    if mode != "MEAN_STD":
        raise WeightsError(f"{policy.path}: pictures are normalized by {mode}, but act here does it by MEAN_STD")
    for name in policy.cameras.values():
        stored = policy.statistics.get(name, {})
        for statistic, wanted in picture_statistics().items():
            found = stored.get(statistic)
            if found is not None and not np.allclose(found, wanted.reshape(-1), atol=1e-4):
                raise WeightsError(
                    f"{policy.path}: the {statistic} of {name} is {found.tolist()}, but act here normalizes pictures "
                    f"as ImageNet's, {wanted.reshape(-1).tolist()}: train it with use_imagenet_stats"
                )
