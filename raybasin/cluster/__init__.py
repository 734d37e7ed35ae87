"""The only room that imports ray: the same jobs as in one process, on many workers."""
