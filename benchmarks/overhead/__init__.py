"""Searches of trials that train nothing, by this package and by plain Ray Tune: what is left is overhead."""
