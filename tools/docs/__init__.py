"""What makes the generated parts of docs/: two pages and the figure of the pipeline."""
