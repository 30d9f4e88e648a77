"""What programs have mounted, unmounted, moved and changed since their container was created."""
