"""The worker process, and the supervision that engines share."""
