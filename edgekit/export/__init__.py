"""From a network to a graph that converters turn into something fast: static size, exact rewrites, frame edges."""
