"""The accuracy of coded inference: every task, network and code, beside the baselines."""
