"""The daemon: sources in, answers out, teaching and rounds beside them. It never imports torch."""
