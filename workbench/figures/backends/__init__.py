"""What draws a Figure: matplotlib for files, plotly for the screen."""
