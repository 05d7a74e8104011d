"""One metric over many result sets, and where it changed."""
