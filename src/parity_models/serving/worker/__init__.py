"""The process that runs models, and what engines have of it."""
