"""Making woodfrog known to engines: one module per engine, and the editing that they share."""
