"""Names of tensors."""

from mxsweep.results.tensor_errors import projections


def test_names_of_projections() -> None:
    assert projections(["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"]) == {
        "model.layers.0.self_attn.q_proj": "q_proj",
        "model.layers.1.self_attn.q_proj": "q_proj",
        "lm_head": "lm_head",
    }
    ambiguous = ["h.0.attn.c_proj", "h.0.mlp.c_proj"]
    assert list(projections(ambiguous).values()) == ["attn.c_proj", "mlp.c_proj"]
