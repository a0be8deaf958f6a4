"""Where a search's files are kept: a directory, or a URL."""
