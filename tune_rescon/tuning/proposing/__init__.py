"""Who draws the next trial, and what the sampler is told of those before."""
