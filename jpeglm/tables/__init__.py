"""Tables of completed files and their distance to real ones."""
