"""One driver for each search: the lease on its record, the claim on its folder."""
