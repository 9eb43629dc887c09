"""Draw figures: Vega-Lite charts, in the page and as files."""
