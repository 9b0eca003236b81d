"""From a bundle, a load and a goal to a policy and a number of instances, by simulation."""
