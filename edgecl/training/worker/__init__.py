"""The worker process of a learning round."""
