"""Open files: one module per kind; ../catalogue.py names them all."""
