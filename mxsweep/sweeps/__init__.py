"""Sweeps: from the words of a command line to the runs it means."""
