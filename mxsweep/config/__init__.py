"""Configure a run: every knob, its check, its part in a run's identity, and the command line behind it."""
