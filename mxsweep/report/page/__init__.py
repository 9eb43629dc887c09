"""Write report.html: figures, tables and what is said of them, in one file that needs no network."""
