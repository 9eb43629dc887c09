"""Name the columns of samples.parquet that say what is known of the choices of a multiple-choice question."""

LOGLIKELIHOODS, RIGHT = "choice_loglikelihoods", "right_choices"
