"""Tables and plots out of tracked runs."""
