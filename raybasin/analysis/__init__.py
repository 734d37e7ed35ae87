"""What came out: reading in pandas, maps, pages, and whether a folder is whole."""
