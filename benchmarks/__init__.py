"""What the parts cost, measured beside what else there is. `RESULTS.md` has the figures."""
