"""Care for the runs in MLflow. The same as `raycurv tracking`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("tracking")
