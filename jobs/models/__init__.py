"""Models that a farm knows by name: in its store by digest, and in a cache of each node."""
