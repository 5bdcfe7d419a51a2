"""The few exceptions of our own: one for what a user can fix, four for what a caller tells apart.

The command line prints a `UserError` as one line and leaves with exit code 2; anything else is a
defect of the program and keeps its traceback.
"""


class UserError(Exception):
    """Something the user can fix. The text says what came, what is allowed and what to do."""


class ConfigError(UserError):
    """A config or recipe has an unknown key, lacks one, or holds a value of the wrong type."""


class StoreError(UserError):
    """A latent store is damaged, or was made by other encoders than the ones at hand."""


class CheckpointError(UserError):
    """A checkpoint or a weights file is damaged, cut, or made for another model."""


class DivergedError(UserError):
    """A training run's loss or gradient, or a picture's latents, are not finite any more."""
