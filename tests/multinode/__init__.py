"""Tests on several nodes: a Ray cluster in network namespaces of one machine, and an object store that all see."""
