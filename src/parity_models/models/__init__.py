"""Models on disk: tensor signatures, network architectures, and the bundle."""
