"""Results of finished runs: outcomes, histories, comparisons, statistics."""
