"""The pages, one group per module: each collects the data of a template and handles its forms."""
