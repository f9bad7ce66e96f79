"""One self-contained HTML page of records: ``python -m fishexp.report.page RECORDS... -o report.html``.

The page has no server, no network, no fonts and no scripts of others: SVG that Python writes, and a script of its own
of a few kilobytes to sort, filter, unfold and copy. The libraries for such tables take 30 to 400 kilobytes, and would
have to be kept up to date inside a page that is meant to be kept; without the script, everything on it is still there.
"""
