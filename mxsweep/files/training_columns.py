"""Name the columns of what a training leaves: curves.parquet and roles.parquet."""

from __future__ import annotations

MEASURES = ("snr_db", "underflow", "saturation", "clamped", "cosine", "slope")
CURVE_COLUMNS = ("step", "tokens", "lr", "loss", "grad_norm", "tokens_per_s", "validation_loss")
# With their types in pandas.
ROLE_COLUMNS = {
    "step": "int64",
    "module": "string",
    "layer": "Int64",
    "role": "string",
    "operand": "string",
    "format": "string",
    **dict.fromkeys(MEASURES, "float64"),
}
