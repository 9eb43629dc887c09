"""Say how long a sequence a model has positions for."""

from transformers import PreTrainedModel


def most_positions(model: PreTrainedModel) -> int | None:
    """Return the tokens of the longest sequence that a model has positions for; None where its configuration says none.

    Where positions are rotary the model computes those of longer sequences as well, which were not trained on.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None
