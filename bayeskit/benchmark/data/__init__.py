"""Data sets by name or by file, and their encoding as numbers."""
