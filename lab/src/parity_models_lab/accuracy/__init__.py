"""The accuracy of coded inference: every task, network and code, next to the baselines."""
