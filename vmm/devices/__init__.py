"""The chips, one per file, as their datasheets have them."""
