"""Statistics, tables, figures and markdown pages, made from measurement documents alone.

Everything here is a pure function: the same measurements give the same bytes. No torch, no runtime, no network.

- :mod:`reports.statistics`: latency summaries, early stopping, bootstrap intervals.
- :mod:`reports.document`: measurements -> the ``report.json`` document, and its check.
- :mod:`reports.figures`: charts (SVG) and strips of frames (PNG).
- :mod:`reports.markdown`: all pages of a report.
- :mod:`reports.numbers`: how numbers are written.
- :mod:`reports.summary`: a table for the terminal.
"""
