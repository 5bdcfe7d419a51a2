"""Complete recipes as functions, and the strings of steps that the command line offers."""
