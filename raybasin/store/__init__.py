"""What a results folder holds: create-only files, tables, weights, and who writes to it."""
