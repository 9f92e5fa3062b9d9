"""A farm on a simulated clock: the scheduler's own placement, with jobs and nodes that are only numbers."""
