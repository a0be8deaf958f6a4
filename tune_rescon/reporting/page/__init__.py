"""report.html: one file that a browser opens without any network, on paper-white and in the dark, on a phone.

The plots are plain dictionaries that plotly.js draws (:mod:`.charts`), the rest is HTML (:mod:`.sections`),
and :mod:`.document` puts them together with the library, a style sheet and a small script (``assets/``).
"""

from tune_rescon.reporting.page.document import render_page, write_report

__all__ = ["render_page", "write_report"]
