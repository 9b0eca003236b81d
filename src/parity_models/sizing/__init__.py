"""From a model and its queries to the best stand-ins, and from a load to the instances it takes."""
