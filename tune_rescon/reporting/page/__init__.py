"""report.html: one file that a browser opens without a network, in a light or dark theme, also on a phone.

The plots are plain dictionaries that plotly.js draws (:mod:`.charts`). The other parts are a Jinja template,
which escapes all text. :mod:`.document` joins them with the library, a style sheet and a small script
(``assets/``).
"""

from tune_rescon.reporting.page.document import render_page, write_report

__all__ = ["render_page", "write_report"]
