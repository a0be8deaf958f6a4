"""Who goes on: the stopping rules, pure."""
