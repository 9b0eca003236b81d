"""The live demo: two ways to serve a model, side by side under the same load and faults."""
