"""Show results to a reader: tables, figures and the page. Nothing here imports torch."""
