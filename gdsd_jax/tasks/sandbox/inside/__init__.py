"""What runs inside bubblewrap: plain modules that import nothing of this package, only each other by their bare names."""
