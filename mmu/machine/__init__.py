"""The VM and its vCPUs: what ties the parts together."""
