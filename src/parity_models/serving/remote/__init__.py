"""The remote engine: models that already run behind Open Inference Protocol servers."""
