"""woodfrog freezes a running container into one file and thaws it into a new container."""

__version__ = "0.1.0"
