"""What makes the generated parts of docs/: the page of the settings and the figure of the pipeline."""
