"""Reports of run records: what is said (`content`), and how (HTML, Markdown, CSV, JUnit, PNG).

Every format renders the same content; only HTML, Markdown and PNG hold charts.
"""
