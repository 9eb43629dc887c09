"""Figures: Vega-Lite charts, drawn in the page and as files."""
