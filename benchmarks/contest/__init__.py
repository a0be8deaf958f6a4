"""Parts of the search-quality benchmark: who searches, what is measured, how it is told."""
