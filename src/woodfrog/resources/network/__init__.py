"""What programs set up in the container's own network namespace."""
