"""What runs and studies leave behind: its schema, tables, plots, image grids and the page."""
