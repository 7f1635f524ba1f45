"""All that needs torch; it runs in processes of its own, never in the one that serves."""
