"""What is known of finished runs: outcomes, histories, comparisons, statistics."""
