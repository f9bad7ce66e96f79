"""What training changed, as a file."""
