"""What is asked for: the sweep file, the methods, and the work that follows from them."""
