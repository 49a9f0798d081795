"""Methods of other papers and packages, as baselines."""
