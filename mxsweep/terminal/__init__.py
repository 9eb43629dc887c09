"""Stand between mxsweep and the person at a terminal: errors they can mend, exit codes, streams that may be closed."""
