"""Searches as others see them: read from their records beside a driver, which does not notice."""
