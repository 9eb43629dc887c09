"""Refuse, under a runtime's rules, products of layers that a packed checkpoint does not hold in codes."""

from __future__ import annotations

from transformers import PreTrainedModel

from mxsweep.config.run_config import RunConfig
from mxsweep.config.runtimes import UNQUANTIZED
from mxsweep.config.stored_weights import stored_formats
from mxsweep.model.sites import find_sites


def refuse_plain_products(model: PreTrainedModel, config: RunConfig) -> None:
    """Raise ConfigError for a layer that is stored as it is, and stays so, whose input gets a format it cannot have.

    Where the weights of other layers are stored in codes, the formats of a config say nothing of such a layer.

    Args:
        model: of the config, unquantized, loaded or on the meta device.
    """
    if config.predicts is None:
        return
    stored = stored_formats(config.model.path)
    if not stored:
        return
    for site in find_sites(model, config.recipe):
        weight, activation = site.formats.weight, site.formats.activation
        if weight is None and activation is not None and site.name not in stored:
            config.predicts.check_pair(f"modules[{site.name}]", UNQUANTIZED, activation.element)
