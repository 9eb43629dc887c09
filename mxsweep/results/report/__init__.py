"""report.html: figures, tables and what is said of them, in one file that needs no network.

study.py      what is computed of a group of runs, once
look.py       colours, shapes and dashes
figure.py     a chart for the page and for a file, its caption, its data as a table
quantity.py   what is drawn along y, its axis and its baselines
lines.py      a quantity against a knob
tradeoff.py   bits per weight against perplexity
heatmap.py    where error enters, by layer and tensor
cells.py      tables to be shown
cards.py      the headline
runs.py       every run, its config, command and files
evidence.py   what knobs do, where error enters, how far noise reaches
environments.py   what runs were made with
page.py       report.html.jinja, report.css and report.js put together
"""
