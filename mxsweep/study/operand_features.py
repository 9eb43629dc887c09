"""Say of a training what each operand of the products became, in plain values that conditions can be put on.

The values come from the identity in a run's record, in which formats are resolved: recipes and knobs that mean the same
have the same. A feature is named `fprop.input.element`, `wgrad.grad.rounding`, `dgrad.hadamard`, `backward`; of an
operand that is left as it is there is its element, "none", and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.training import PRODUCTS
from mxsweep.results.rows import Row, label

BASELINE = "baseline"  # a feature that is "true" of a run that quantizes nothing
FIELDS = (*(field.name for field in dataclasses.fields(MXFormat)), "prescale")
TRAIN = "train"  # how the model was trained: from_scratch, finetune
OTHERS = ("backward", "signs", "keep_high", TRAIN, BASELINE)
Features = Mapping[str, str]
Conditions = Mapping[str, Any]  # patterns over names of features to a value, or a list of those allowed


def operand_features(row: Row) -> Features:
    """Return the features of a run that trained, as labels; nothing where its record does not have them."""
    trained = {TRAIN: label(row.knobs[TRAIN])} if TRAIN in row.knobs else {}
    if row.is_baseline:
        return {BASELINE: "true", **trained}
    quantized = row.recorded("identity", "quantized", "training")
    try:
        return {**_features(quantized), **trained}
    except (KeyError, TypeError, ValueError, IndexError):  # of another version
        return {}


def meets(features: Features, conditions: Conditions) -> bool:
    """Return whether each condition holds for all features that its pattern names, and names one at least."""
    for pattern, wanted in conditions.items():
        allowed = {label(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
        named = [value for name, value in features.items() if fnmatchcase(name, pattern)]
        if not named or not set(named) <= allowed:
            return False
    return True


def without(features: Features, patterns: set[str]) -> Features:
    """Return the features that no pattern names."""
    return {name: value for name, value in features.items() if not any(fnmatchcase(name, each) for each in patterns)}


def is_pattern(pattern: str) -> bool:
    """Return whether a pattern names a feature that there is."""
    operands = [f"{product}.{operand}" for product, both in PRODUCTS.items() for operand in both]
    names = [f"{operand}.{name}" for operand in operands for name in FIELDS]
    names += [*(f"{product}.hadamard" for product in PRODUCTS), *OTHERS]
    return any(fnmatchcase(name, pattern) for name in names)


def _features(training: Mapping[str, Any]) -> Features:
    _, *products = training["layers"][0]  # of all linear layers; those that patterns name come after
    features = {"backward": label(training["backward"]), "signs": label(training["signs"]), BASELINE: "false"}
    features["keep_high"] = label(training["kept"])
    for (product, operands), (first, second, hadamard) in zip(PRODUCTS.items(), products, strict=True):
        features[f"{product}.hadamard"] = label(hadamard)
        for operand, text in zip(operands, (first, second), strict=True):
            features |= {f"{product}.{operand}.{name}": value for name, value in _fields(text).items()}
    return features


def _fields(text: str | None) -> Features:
    """Return the fields of an operand's format, given as OperandFormat writes it."""
    if text is None:
        return {"element": "none"}
    fmt, *more = text.split(" ")
    fields: dict[str, Any] = dataclasses.asdict(MXFormat.parse(fmt))
    if isinstance(fields["block_size"], list | tuple):
        fields["block_size"] = "x".join(map(str, fields["block_size"]))
    fields |= {"prescale": 1, "four_over_six": "4/6" in more}
    for each in more:
        if each.startswith("x"):
            fields["prescale"] = float(each[1:])
    return {name: label(value) for name, value in fields.items()}
