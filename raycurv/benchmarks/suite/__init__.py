"""The benchmark suite: tasks with a number of steps and a target, methods, score and tables. Nothing here runs Ray."""
