"""What came out: reading in pandas, maps, pages, exports, and whether a folder is whole."""
