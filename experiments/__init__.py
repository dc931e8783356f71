"""The paper's experiments: what is run, and what is made of it. How it is run is in fednano/cli."""
