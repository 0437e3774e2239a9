"""What a destination proves, and what is damaged."""
