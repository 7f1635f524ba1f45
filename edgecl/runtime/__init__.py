"""The daemon: sources in, answers out, learning and rounds beside them. Never imports torch."""
