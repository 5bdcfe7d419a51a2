"""Names of the studies, as `rectiflow study NAME` takes them."""

from collections.abc import Callable

from rectiflow.base.errors import ConfigError
from rectiflow.studies.autoencoder_channels import autoencoder_channels
from rectiflow.studies.backbones import backbones
from rectiflow.studies.captions import captions
from rectiflow.studies.encoders import encoders
from rectiflow.studies.formulations import formulations
from rectiflow.studies.qk_norm import qk_norm
from rectiflow.studies.scaling import scaling
from rectiflow.studies.shift import shift
from rectiflow.studies.study import Scale, Study

STUDIES: dict[str, Callable[[Scale], Study]] = {
    "formulations": formulations,
    "backbones": backbones,
    "qk-norm": qk_norm,
    "autoencoder-channels": autoencoder_channels,
    "captions": captions,
    "encoders": encoders,
    "scaling": scaling,
    "shift": shift,
}


def study(name: str, scale: Scale) -> Study:
    """The study of that name with its sizes at a scale.

    Raises:
        ConfigError: there is none; the text lists the names.
    """
    if name not in STUDIES:
        raise ConfigError(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    return STUDIES[name](scale)
