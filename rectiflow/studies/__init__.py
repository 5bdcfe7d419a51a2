"""The paper's experiments as resumable grids: what is run, how it is ranked, what it says."""
