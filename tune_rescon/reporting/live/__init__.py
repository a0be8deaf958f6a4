"""The table that is redrawn while a search runs: what is known, how it looks, and who draws it."""
