"""The plots of the page, as plotly.js takes them."""

from tune_rescon.reporting.page.charts.all_charts import Panel, comparison_panels, panels
from tune_rescon.reporting.page.charts.chart import Chart

__all__ = ["Chart", "Panel", "comparison_panels", "panels"]
