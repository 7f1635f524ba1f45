"""Class statistics to solve heads from, and what a head's scores are by definition."""
from __future__ import annotations

import numpy as np

from edgecl.statistics.class_statistics import ClassStatistics


def learned(classes=6, d=12, n=40, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    mix = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    store, data = ClassStatistics(np.full(d, offset)), {}
    for c in range(classes):
        data[c] = (offset + 2 * rng.standard_normal(d) + rng.standard_normal((n + c, d)) @ mix).astype(np.float32)
        store.add(f"c{c:02}", data[c])
    return store.pooled(), data


def written_out(x, pooled):
    """min_c (x - mu_c)^T S_e^-1 (x - mu_c) - (x - mu)^T (S_e + B)^-1 (x - mu), all in d dimensions."""
    e, d = pooled.shrinkage, len(pooled.centre)
    within = (1 - e) * pooled.covariance + e * np.trace(pooled.covariance) / d * np.eye(d)
    total = within + sum(s * np.outer(m, m) for s, m in zip(pooled.share, pooled.means))
    x = x.astype(np.float64) - pooled.centre
    root, whole = (np.linalg.inv(np.linalg.cholesky(a)).T for a in (within, total))
    near = [(((x - m) @ root) ** 2).sum(1) for m in pooled.means]
    return np.min(near, 0) - ((x @ whole) ** 2).sum(1)
