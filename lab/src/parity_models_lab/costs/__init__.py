"""What everything costs: microbenchmarks of codes, the server, and Ray."""
