"""Tables of completed files and how far they are from real ones."""
