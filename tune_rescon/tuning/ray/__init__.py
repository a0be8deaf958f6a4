"""The run of a search's trials by Ray. Nothing outside this package imports Ray."""
