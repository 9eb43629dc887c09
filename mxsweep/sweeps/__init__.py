"""Do many runs: plan what a command line means, do it here, beside here or on a cluster, and watch."""
