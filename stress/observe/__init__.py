"""Observers: counters, histograms, the flight recorder, disturbances, resources."""
