"""Real data, baselines, reports and the demo."""
