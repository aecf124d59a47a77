"""The pages, a family a module: each gathers what a template shows and does what its forms ask for."""
