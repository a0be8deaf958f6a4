"""Run the trials of a search with Ray. No module outside this package imports Ray."""
