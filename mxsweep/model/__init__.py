"""Models: loading them, and putting MX formats in and taking them out again."""
