"""Pictures: plots with matplotlib, videos with imageio."""
