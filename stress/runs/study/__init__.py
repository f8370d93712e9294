"""A study: runs over a grid of policies and places, what one delete costs at each, and where one
policy overtakes another."""
