"""The table that is redrawn while a search runs: its state, its rendering and the view that draws it."""
