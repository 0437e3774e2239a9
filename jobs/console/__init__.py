"""What people see: the terminal, words for figures, signals."""
