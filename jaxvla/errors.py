"""Errors that a user can mend. Every main prints their one line and exits with code 1."""


class JaxvlaError(Exception):
    """Base class. The message is one line that names the path, key or shape at fault, and the mend."""


class ConfigError(JaxvlaError):
    """A configuration value is unknown, of the wrong type, or contradicts another one."""


class DataError(JaxvlaError):
    """A dataset, or a file of one, is missing, damaged, or not what the configuration says."""


class CheckpointError(JaxvlaError):
    """A checkpoint folder is missing, incomplete, cannot be written, or belongs to another configuration."""


class TrainingError(JaxvlaError):
    """Training cannot go on: the loss is not finite, the data ended, or the logs cannot be written."""


class PolicyError(JaxvlaError):
    """An observation or a task is not of the kind that the policy was trained on."""


class WeightsError(JaxvlaError):
    """A folder of pretrained weights is missing, damaged, or holds another model than the configuration says."""


class RobotError(JaxvlaError):
    """A robot must not, or cannot, go on: its service is gone or refuses, or it was to do what it must not do."""
