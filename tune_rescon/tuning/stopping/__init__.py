"""Stopping rules: whether a trial continues after an epoch, is paused, or is stopped."""
